"""Time and quality of settings that change the result."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed import quality_cost as quality
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.quality_cost import Lever, levers, measure_quality, pictures
from monai_diffaug.studies.speed.timed_edits import Amount
from monai_diffaug.studies.study_images import StudyData


def test_the_pictures_are_held_out_lesions_with_their_names(breast: StudyData) -> None:
    images = pictures(breast, 5)
    assert len(images) == 5 and len({float(p.image.sum()) for p in images}) == 5
    for picture in images:
        assert picture.image.shape == picture.mask.shape == (1, 256, 256) and picture.mask.sum() >= quality.MIN_AREA_PX
        assert "mass" in picture.prompt


def test_the_settings_have_different_names_after_the_reference_and_the_default() -> None:
    settings = list(levers(models.embedded(torch.device("cpu")), 50))
    names = [lever.name for lever in settings]
    assert names[:2] == ["DDIM, 50 steps", "DDIM, 12 steps (default)"] and len(set(names)) == len(names)
    for word in ("DPM-Solver++", "UniPC", "LCM", "no guidance", "strength", "region of interest", "bfloat16"):
        assert any(word in name for name in names)


@pytest.mark.slow
def test_the_similarity_is_one_for_the_reference_and_lower_for_fewer_steps(breast: StudyData, monkeypatch: pytest.MonkeyPatch) -> None:
    def two(model: object, steps: int) -> list[Lever]:
        return [Lever(f"{n}", {"num_inference_steps": n}, model) for n in (6, 6, 2)]  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "levers", two)
    reference, same, fewer = measure_quality(breast, torch.device("cpu"), Amount(images=2))
    assert reference["similarity"] == pytest.approx(1.0) and same["similarity"] == pytest.approx(1.0)
    assert fewer["similarity"] < 0.99 and fewer["faster_than_default"] > 1
    assert all(0 <= row["accepted"] <= 1 for row in (reference, fewer))


def test_random_weights_have_a_time_but_no_quality(breast: StudyData, monkeypatch: pytest.MonkeyPatch) -> None:
    def two(model: Inpainter, steps: int) -> list[Lever]:
        options = {"num_inference_steps": 1}
        return [
            Lever("trained", options, model),
            Lever("default", options, model),
            Lever("random", options, models.with_tiny_vae(model), False),
        ]

    monkeypatch.setattr(quality, "levers", two)
    *_, random = measure_quality(breast, torch.device("cpu"), Amount(images=1))
    assert random["seconds"] > 0 and random["similarity"] is random["accepted"] is random["dice"] is None
