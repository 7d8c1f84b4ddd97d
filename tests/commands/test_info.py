from __future__ import annotations

from packaging.requirements import Requirement

from monai_diffaug.cli import main
from monai_diffaug.commands import info


def test_info_names_versions_models_and_devices(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for part in ("monai_diffaug", "torch", "devices: cpu", "inpainter", "medsam", "validator", "extras"):
        assert part in text


def test_an_extra_that_names_the_package_stands_for_the_extras_it_lists():
    texts = ("monai", 'fire; extra == "bundle"', 'peft; extra == "train"', 'pkg[bundle,train]; extra == "all"')
    needed = [Requirement(text) for text in texts]
    needed[-1].name = "monai_diffaug"
    assert info._names(needed, "all") == {"fire", "peft"} and info._names(needed, "bundle") == {"fire"}


def test_figures_are_shown_to_three_digits():
    assert info._rounded({"ct": 31.28171198, "mri": 31.3}) == "ct 31.3, mri 31.3" and info._rounded(7) == "7"
