from __future__ import annotations

import json

import pytest
from packaging.requirements import Requirement

from monai_diffaug.commands import info
from monai_diffaug.commands.cli import main
from monai_diffaug.models import registry
from monai_diffaug.prompts import VOCABULARIES


def test_info_names_versions_and_devices(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for part in ("monai_diffaug", "  torch 2.", "devices: cpu", "embedded models:", "extras:"):
        assert part in text


def test_the_vocabulary_lists_findings_by_anatomy_of_all_modalities_or_of_one(capsys):
    assert main(["info", "--vocabulary"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [table.modality for table in VOCABULARIES.values()]
    listed = {word for line in lines if line.startswith("  ") and ": " in line for word in line.split(": ", 1)[1].split(", ")}
    for table in VOCABULARIES.values():
        assert {finding for findings in table.findings.values() for finding in findings} <= listed
    assert main(["info", "--vocabulary", "US"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ultrasound" and "  thyroid: benign nodule, malignant nodule, colloid cyst" in lines
    assert main(["info", "--vocabulary", "sonar"]) == 2
    assert "use one of ultrasound, ct" in capsys.readouterr().err


def test_every_embedded_model_is_listed_with_its_size_and_every_figure_by_its_name(capsys):
    folder = registry.tiny_folder("figures.json").parent
    info._print_models()
    lines = dict(line.strip().split(": ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    models = {part.name for part in folder.iterdir() if part.is_dir()}
    assert set(lines) == models | set(json.loads((folder / "figures.json").read_text()))
    for name in models:
        size, unit = lines[name].split()
        written = sum(file.stat().st_size for file in (folder / name).rglob("*.safetensors")) / 1e6
        assert unit == "MB" and float(size) == pytest.approx(written, abs=0.15)


def test_an_embedded_model_that_is_not_there_is_listed_as_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "tiny_folder", lambda part: tmp_path / part)
    info._print_models()
    lines = capsys.readouterr().out.splitlines()
    assert "  inpainter: missing" in lines and all(line.endswith(": missing") for line in lines[1:])


def test_a_missing_package_is_listed_under_each_extra_that_brings_it_with_the_command(monkeypatch, capsys):
    monkeypatch.setattr(info, "_version_of", lambda name: None if name == "peft" else "1.0")
    info._print_extras()
    lines = capsys.readouterr().out.splitlines()
    assert "  train: missing peft: pip install monai_diffaug[train]" in lines
    assert "  all: missing peft: pip install monai_diffaug[all]" in lines
    assert "  demo: complete" in lines


def test_a_package_that_is_not_installed_by_pip_says_so_in_place_of_its_extras(monkeypatch, capsys):
    from importlib import metadata

    def not_installed(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", not_installed)
    info._print_extras()
    assert capsys.readouterr().out == "extras: unknown, monai_diffaug is not installed by pip\n"


def test_an_extra_that_names_the_package_stands_for_the_extras_it_lists():
    texts = ("monai", 'fire; extra == "bundle"', 'peft; extra == "train"', 'pkg[bundle,train]; extra == "all"')
    needed = [Requirement(text) for text in texts]
    needed[-1].name = "monai_diffaug"
    assert info._names(needed, "all") == {"fire", "peft"} and info._names(needed, "bundle") == {"fire"}


def test_figures_are_shown_to_three_digits():
    assert info._rounded({"ct": 31.28171198, "mri": 31.3}) == "ct 31.3, mri 31.3" and info._rounded(7) == "7"
