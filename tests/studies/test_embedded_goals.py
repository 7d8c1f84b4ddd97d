from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.studies import embedded_goals
from monai_diffaug.studies.embedded_goals import measure, painted_into_normal, table, vae_psnr
from monai_diffaug.studies.study_images import StudyData, StudyInputError

ROOT = Path(__file__).parents[2]
FIGURES = json.loads((tiny_folder("") / "figures.json").read_text())


def test_psnr_is_measured_for_every_modality_and_is_that_of_the_shipped_decoder(packed) -> None:
    data = StudyData.open(packed("spleen_ct", "fundus_disc_cup", "brain_mri_tumour"))
    values = vae_psnr(data, images_per_dataset=2)
    assert set(values) == {"ct", "fundus", "mri"}
    # noise with a standard deviation of 5 % of the range has 26 dB
    assert all(value == pytest.approx(FIGURES["vae_psnr_db"][modality], abs=4) and value > 28 for modality, value in values.items())


def test_data_without_normal_images_are_refused(packed) -> None:
    with pytest.raises(StudyInputError, match="lesions and normal images"):
        measure(StudyData.open(packed("spleen_ct")))


@pytest.mark.slow
def test_nothing_outside_the_mask_changes_and_the_prompt_decides_what_is_found(breast, monkeypatch) -> None:
    places = embedded_goals._outlines_on_normal_images
    monkeypatch.setattr(embedded_goals, "_outlines_on_normal_images", lambda *arguments: places(*arguments)[:8])
    figures = painted_into_normal(breast, per_image=1, steps=2)
    assert figures["n"] == 8
    assert figures["voxels_changed_outside"] == 0
    assert figures["mean_dice_lesion_prompt"] > figures["mean_dice_normal_prompt"] + 0.2


def test_the_documentation_shows_the_measured_figures() -> None:
    page = (ROOT / "docs" / "explanation" / "embedded-models.md").read_text()
    assert all(line.rstrip() in page for line in table(FIGURES).splitlines())


@pytest.mark.parametrize("part", ["inpainter", "medsam", "validator"])
def test_the_embedded_weights_stay_small(part: str) -> None:
    assert sum(file.stat().st_size for file in tiny_folder(part).rglob("*") if file.is_file()) < 20e6
