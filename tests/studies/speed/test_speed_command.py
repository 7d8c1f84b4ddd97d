"""The command: what it writes and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_diffaug.studies.speed import speed_command as command
from monai_diffaug.studies.speed.speed_settings import FULL, QUICK, Amount


def stub(monkeypatch: pytest.MonkeyPatch, passed: bool) -> list[Amount]:
    amounts: list[Amount] = []

    def masks(device: torch.device, amount: Amount) -> dict[str, Any]:
        amounts.append(amount)
        return {"masks": [{"model": "none", "input_px": 64, "dtype": "float32", "passed": False}] if not passed else []}

    monkeypatch.setattr(command, "MEASUREMENTS", {"medsam": (("medsam", masks),)})
    return amounts


def test_the_file_holds_figures_machine_and_amount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    amounts = stub(monkeypatch, passed=True)
    assert command.main(["medsam", "--quick", "--device", "cpu", "--out", str(tmp_path / "new" / "figures.json")]) == 0
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert figures["machine"]["torch"] == torch.__version__.split("+")[0] and figures["amount"]["rounds"] == QUICK.rounds
    assert figures["medsam"] == {"masks": []} and amounts == [QUICK]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["figures.json"]
    assert "interleaved rounds" in capsys.readouterr().out


def test_arms_that_differ_end_in_a_status_of_one(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    amounts = stub(monkeypatch, passed=False)
    assert command.main(["all", "--rounds", "9", "--device", "cpu"]) == 1
    assert "results differ: not timed" in capsys.readouterr().out
    assert amounts[0].rounds == 9 and amounts[0].volumes == FULL.volumes


def test_a_full_run_has_rounds_enough_for_an_interval() -> None:
    assert FULL.rounds >= 7


def test_runs_of_one_machine_become_one_table_in_the_readme(tmp_path: Path, capsys: Any) -> None:
    head = {"version": "1", "device": "cpu", "machine": {"processor": "p", "torch": "2", "diffusers": "0"}, "amount": {"rounds": 7}}
    files = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"]
    line = {
        "of": "slices",
        "counts": [1, 2],
        "slope_ms": 1.0,
        "slope_over_bare": 1.0,
        "intercept_ms": [0.0] * 3,
        "own_ms": 1.0,
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
