"""The command: files, exit status, and the part that needs data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_diffaug.studies.speed import speed_command as command
from monai_diffaug.studies.speed.timed_edits import FULL, QUICK, Amount
from monai_diffaug.studies.study_images import StudyInputError


def stub(monkeypatch: pytest.MonkeyPatch, passed: bool) -> list[Amount]:
    amounts: list[Amount] = []

    def masks(device: torch.device, amount: Amount) -> dict[str, Any]:
        amounts.append(amount)
        return {"masks": [{"model": "none", "input_px": 64, "dtype": "float32", "passed": False}] if not passed else []}

    monkeypatch.setattr(command, "MEASUREMENTS", {"medsam": {"medsam": masks}})
    return amounts


def test_the_file_has_figures_machine_and_amount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    amounts = stub(monkeypatch, passed=True)
    assert command.main(["medsam", "--quick", "--device", "cpu", "--out", str(tmp_path / "new" / "figures.json")]) == 0
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert figures["machine"]["torch"] == torch.__version__.split("+")[0] and figures["amount"]["rounds"] == QUICK.rounds
    assert figures["medsam"] == {"masks": []} and amounts == [QUICK]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["figures.json"]
    assert "interleaved rounds" in capsys.readouterr().out


def test_the_exit_status_is_one_if_results_differ(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    amounts = stub(monkeypatch, passed=False)
    assert command.main(["all", "--rounds", "9", "--device", "cpu"]) == 1
    assert "results differ: not timed" in capsys.readouterr().out
    assert amounts[0].rounds == 9 and amounts[0].volumes == FULL.volumes


def test_without_data_all_skips_the_quality_with_a_warning_and_quality_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stub(monkeypatch, passed=True)
    monkeypatch.setattr(command, "measure_quality", lambda *args: pytest.fail("measured without data"))
    assert command.main(["all", "--quick", "--device", "cpu"]) == 0
    assert [record.message for record in caplog.records if "quality is skipped: it needs --data DATALIST.json" in record.message]
    with pytest.raises(StudyInputError, match="quality needs --data DATALIST.json"):
        command.main(["quality", "--device", "cpu"])


def test_with_data_the_quality_is_measured_on_its_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    requests: list[Any] = []

    def quality(data: Any, device: torch.device, amount: Amount) -> list[dict[str, Any]]:
        requests.append((data, device, amount))
        return []

    monkeypatch.setattr(command, "measure_quality", quality)
    monkeypatch.setattr(command.StudyData, "open", lambda file, datasets, preferred: (file, datasets, preferred))
    out = tmp_path / "quality.json"
    arguments = ["quality", "--quick", "--device", "cpu", "--data", "list.json", "--dataset", "liver", "--out", str(out)]
    assert command.main(arguments) == 0 and json.loads(out.read_text())["quality"] == []
    assert requests == [((Path("list.json"), ["liver"], ("breast_ultrasound",)), torch.device("cpu"), QUICK)]


def test_runs_of_one_machine_are_merged_into_the_tables_of_a_page(tmp_path: Path, capsys: Any) -> None:
    head = {"version": "1", "device": "cpu", "machine": {"processor": "p", "torch": "2", "diffusers": "0"}, "amount": {"rounds": 7}}
    files = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"]
    line = {
        "of": "slices",
        "counts": [1, 2],
        "slope_ms": 1.0,
        "slope_over_bare": 1.0,
        "intercept_ms": [0.0] * 3,
        "package_ms": 1.0,
        "r_squared": 1.0,
    }
    for file, more in zip(files, ({"medsam": {"masks": []}}, {"scaling": [line]}, {"amount": {"rounds": 3}}), strict=True):
        file.write_text(json.dumps({**head, **more}))
    readme, out = tmp_path / "README.md", tmp_path / "all.json"
    readme.write_text("<!-- benchmark:start -->\n<!-- benchmark:end -->\n")
    assert command.main(["--figures", *map(str, files[:2]), "--out", str(out), "--readme", str(readme)]) == 0
    assert json.loads(out.read_text()).keys() == {*head, "medsam", "scaling"} and "| slices | 1 to 2 |" in readme.read_text()
    with pytest.raises(ValueError, match="the runs differ in amount"):
        command.main(["--figures", str(files[0]), str(files[2])])
