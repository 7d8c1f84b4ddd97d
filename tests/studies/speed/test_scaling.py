"""The line through costs."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed import scaling
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.scaling import fit_line
from monai_diffaug.studies.speed.speed_settings import EditSettings
from monai_diffaug.studies.speed.timed_volumes import make_volume


def test_a_line_is_found_again() -> None:
    slope, intercept, fit = fit_line([8, 16, 24], [0.5 + 0.1 * n for n in (8, 16, 24)])
    assert slope == pytest.approx(0.1) and intercept == pytest.approx(0.5) and fit == pytest.approx(1.0)


def test_what_is_no_line_is_told_from_one() -> None:
    assert fit_line([1, 2, 3, 4], [1, 4, 9, 16])[2] < 0.99


def test_the_package_alone_is_timed_when_the_forwards_take_no_time(random_inpainter: str) -> None:
    model, settings = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu")), EditSettings(steps=2)
    volume = make_volume(32, 2)
    edit = settings.transform(models.instant(model)).apply(volume.image, volume.mask, settings.prompt, seed=0)
    assert edit.record["applied"] and edit.record["n_slices"] == 2
    assert 0 < scaling._own_milliseconds(model, settings, 32, 3) < 50


def test_a_row_has_the_line_of_both_arms(random_inpainter: str) -> None:
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    row = scaling._slices(model, EditSettings(steps=1), 32, [1, 2, 3], 2)
    assert row["counts"] == [1, 2, 3] and len(row["seconds"]) == len(row["bare_seconds"]) == len(row["intercept_ms"]) == 3
    assert row["intercept_ms"][1] <= row["intercept_ms"][0] <= row["intercept_ms"][2] and row["own_ms"] > 0
