from __future__ import annotations

import json

import pytest

from monai_diffaug.studies.report import run_study, study_parser, write_text
from monai_diffaug.studies.study_images import StudyInputError


def test_a_study_prints_its_text_and_writes_figures_with_the_options(user_datalist, tmp_path, capsys):
    def study(options, data):
        return f"{data.title} {options.num_inference_steps} {options.window}", {"value": 3}

    out = tmp_path / "new" / "figures.json"
    arguments = ["--data", str(user_datalist), "--num-inference-steps", "5", "--window=-160,240", "--out", str(out)]
    assert run_study(study_parser("A study."), study, arguments, needs="images") == 0
    assert capsys.readouterr().out == "datalist 5 (-160.0, 240.0)\n"
    figures = json.loads(out.read_text())
    assert figures["value"] == 3 and figures["settings"]["num_inference_steps"] == 5 and figures["settings"]["model"] == "tiny"


def test_options_that_a_study_does_not_have_are_refused():
    parser = study_parser("A study.", model=None, repaints=False, seed=False)
    for option in ("--model", "--num-inference-steps", "--seed"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([option, "3"])
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--window", "240,-160"])


def test_without_data_the_needs_are_named():
    with pytest.raises(StudyInputError, match="needs --data DATALIST.json, a MONAI datalist with polyps"):
        run_study(study_parser("A study."), lambda options, data: ("", {}), [], needs="polyps")


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "a" / "b.txt"
    for text in ("first", "second"):
        write_text(text, file)
        assert file.read_text() == text and [each.name for each in file.parent.iterdir()] == ["b.txt"]
