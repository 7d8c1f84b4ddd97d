"""Description of the machine."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from monai_diffaug.studies.speed import machine
from monai_diffaug.studies.speed.machine import describe_machine, multiplies_bfloat16


def test_the_description_is_json_with_the_versions_of_the_libraries() -> None:
    description = describe_machine()
    assert json.loads(json.dumps(description)) == description
    assert description["torch"] == torch.__version__.split("+")[0] and description["cores"] >= 1  # type: ignore[operator]


def test_a_library_that_is_not_installed_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", missing)
    assert describe_machine()["diffusers"] == "not installed"


@pytest.mark.parametrize(("flags", "supported"), [("fpu amx_bf16 amx_tile", True), ("fpu avx512_bf16", False)])
def test_a_processor_with_amx_multiplies_bfloat16(flags: str, supported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor : 0\nmodel name : Fast Processor\nflags : {flags}\n")
    monkeypatch.setattr(machine, "PROCESSOR_FILE", file)
    assert multiplies_bfloat16(torch.device("cpu")) is supported
    assert describe_machine()["processor"] == "Fast Processor"
    monkeypatch.setattr(machine, "PROCESSOR_FILE", tmp_path / "none")
    assert not multiplies_bfloat16(torch.device("cpu")) and describe_machine()["processor"] != "Fast Processor"
