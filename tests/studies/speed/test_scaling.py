"""Time against the number of slices or samples."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed import scaling
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.scaling import fit_line
from monai_diffaug.studies.speed.timed_edits import EditSettings, make_volume


def test_the_line_of_exact_values_has_their_slope_and_intercept() -> None:
    slope, intercept, fit = fit_line([8, 16, 24], [0.5 + 0.1 * n for n in (8, 16, 24)])
    assert slope == pytest.approx(0.1) and intercept == pytest.approx(0.5) and fit == pytest.approx(1.0)


def test_a_parabola_has_a_lower_coefficient_of_determination() -> None:
    assert fit_line([1, 2, 3, 4], [1, 4, 9, 16])[2] < 0.99


def test_the_time_of_the_package_is_measured_without_the_forwards(random_inpainter: str) -> None:
    model, settings = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu")), EditSettings(steps=2)
    volume = make_volume(32, 2)
    edit = settings.transform(models.instant(model)).apply(volume.image, volume.mask, settings.prompt, seed=0)
    assert edit.record["applied"] and edit.record["n_slices"] == 2
    assert 0 < scaling.package_milliseconds(model, settings, 32, 3) < 50


def test_a_row_has_the_line_of_both_arms(random_inpainter: str) -> None:
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    settings = EditSettings(steps=1)
    row = scaling._line("slices", scaling._slices(model, settings, 32, [1, 2, 3]), model, settings, 32, 2)
    assert row["counts"] == [1, 2, 3] and len(row["seconds"]) == len(row["bare_seconds"]) == len(row["intercept_ms"]) == 3
    assert row["intercept_ms"][1] <= row["intercept_ms"][0] <= row["intercept_ms"][2] and row["package_ms"] > 0


def test_samples_of_a_batch_and_slices_of_a_volume_repaint_their_number_of_slices(random_inpainter: str) -> None:
    model, settings = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu")), EditSettings(steps=1)
    for edits in (scaling._slices(model, settings, 32, [1, 3]), scaling._samples(model, settings, 32, [1, 3])):
        for count, edit in edits.items():
            result = edit()
            records = [each.record for each in result] if isinstance(result, list) else [result.record]  # type: ignore[attr-defined]
            assert sum(record["n_slices"] for record in records) == count
