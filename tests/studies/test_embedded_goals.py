from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.studies.embedded_goals import painted_into_normal, table, vae_psnr
from monai_diffaug.training.embedded.datasets import SOURCES

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_measured_figures() -> None:
    figures = json.loads((tiny_folder("") / "figures.json").read_text())
    assert all(line.rstrip() in (ROOT / "README.md").read_text() for line in table(figures).splitlines())


def test_psnr_is_measured_for_every_modality(real_data) -> None:
    values = vae_psnr(images_per_source=1)
    assert set(values) == {source.modality for source in SOURCES}
    assert all(10 < value < 60 for value in values.values())


def test_nothing_outside_the_mask_changes_and_the_prompt_decides_what_is_found(real_data) -> None:
    figures = painted_into_normal(per_image=1, steps=4)
    assert figures["n"] >= 15
    assert figures["voxels_changed_outside"] == 0
    assert figures["mean_dice_lesion_prompt"] > figures["mean_dice_normal_prompt"]


@pytest.mark.parametrize("part", ["inpainter", "medsam", "validator"])
def test_the_embedded_weights_stay_small(part: str) -> None:
    assert sum(file.stat().st_size for file in tiny_folder(part).rglob("*") if file.is_file()) < 20e6
