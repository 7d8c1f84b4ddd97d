"""The quality beside each lever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed import quality_cost as quality
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.quality_cost import Lever, levers, measure_quality, pictures
from monai_diffaug.studies.speed.speed_settings import Amount


def test_the_pictures_are_held_out_lesions_with_their_names(real_data: Path) -> None:
    shown = pictures(5)
    assert len(shown) == 5 and len({float(p.image.sum()) for p in shown}) == 5
    for picture in shown:
        assert picture.image.shape == picture.mask.shape == (1, 256, 256) and picture.mask.sum() >= quality.MIN_AREA_PX
        assert "mass" in picture.prompt


def test_every_lever_is_named_once_and_the_reference_and_the_default_come_first() -> None:
    listed = list(levers(models.embedded(torch.device("cpu")), 50))
    names = [lever.name for lever in listed]
    assert names[:2] == ["DDIM, 50 steps", "DDIM, 12 steps (default)"] and len(set(names)) == len(names)
    for word in ("DPM-Solver++", "UniPC", "LCM", "no guidance", "strength", "region of interest", "bfloat16"):
        assert any(word in name for name in names)


def test_the_reference_is_like_itself_and_fewer_steps_are_less_like_it(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def two(model: object, steps: int) -> list[Lever]:
        return [Lever(f"{n}", {"num_inference_steps": n}, model) for n in (6, 6, 2)]  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "levers", two)
    reference, same, fewer = measure_quality(torch.device("cpu"), Amount(images=2))
    assert reference["similarity"] == pytest.approx(1.0) and same["similarity"] == pytest.approx(1.0)
    assert fewer["similarity"] < 0.99 and fewer["faster_than_default"] > 1
    assert all(0 <= row["accepted"] <= 1 for row in (reference, fewer))


def test_of_random_weights_only_the_time_is_told(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def two(model: Inpainter, steps: int) -> list[Lever]:
        options = {"num_inference_steps": 1}
        return [
            Lever("trained", options, model),
            Lever("default", options, model),
            Lever("random", options, models.with_tiny_vae(model), False),
        ]

    monkeypatch.setattr(quality, "levers", two)
    *_, random = measure_quality(torch.device("cpu"), Amount(images=1))
    assert random["seconds"] > 0 and random["similarity"] is random["accepted"] is random["dice"] is None
