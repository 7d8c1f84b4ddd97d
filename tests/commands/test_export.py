from __future__ import annotations

import json

import pytest

from monai_diffaug.commands import cli, export
from monai_diffaug.generate.export_run import FORMATS
from tests.generate.run_folders import small_run


def test_the_formats_of_the_command_are_those_of_the_library():
    assert export.FORMATS == FORMATS


def test_an_export_is_counted_and_its_classes_are_named(tmp_path, capsys):
    maker = small_run(tmp_path, ids={"mass": 4}, value=4)
    maker.result("images/c.png", 2, donor="foreign#1")
    maker.finish()
    out = tmp_path / "Dataset501_T"
    assert cli.main(["export", str(maker.run), "--format", "nnunet", "--out", str(out), "--folds", "2", "--channels", "US"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == f"{out}: 4 real and 7 synthetic cases, 2 fold(s)"
    assert text[1] == "classes: 0 background, 1 mass" and text[2] == "class ids renumbered without gaps: 4 -> 1"
    assert text[3:5] == ["real images written: 0", "real labels written: 4"]
    # the result with a donor of another fold trains nowhere with two folds, if the folds differ; the foreign donor never
    assert text[-1].startswith("in the training of no fold: ")
    assert json.loads((out / "dataset.json").read_text())["channel_names"] == {"0": "US"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "nnunet", "--out", "out"], "DatasetNNN_Name"),
        (["--format", "monai", "--out", "out", "--data", "none.json"], "none.json: no such file"),
        (["--format", "monai", "--out", "out", "--folds", "1"], "must be in 2 to 100"),
        (["--format", "coco", "--out", "out"], "invalid choice"),
        (["--format", "decathlon", "--out", "Task501_T", "--keep-ids"], "not 0, 1, 2"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, options, message):
    maker = small_run(tmp_path, ids={"mass": 4}, value=4)
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["export", str(maker.run), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_without_a_run_and_a_run_without_a_result_are_refused(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path), "--format", "monai", "--out", str(tmp_path / "out")]) == 2
    maker = small_run(tmp_path)
    for record in maker.records:
        (maker.run / "results" / record.job / "record.json").unlink()
    assert cli.main(["export", str(maker.run), "--format", "monai", "--out", str(tmp_path / "out")]) == 2
    assert "has no accepted result" in capsys.readouterr().err
