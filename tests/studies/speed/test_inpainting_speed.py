"""Repainting against diffusers' pipeline: equal with random and with trained weights; without equality no speed."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed import inpainting_speed as inpainting
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.inpainting_speed import gates_of, measure_edit, measure_inpainting, measure_roi, measure_scheduler_step
from monai_diffaug.studies.speed.timed_edits import Amount, EditSettings, make_volume

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)


@pytest.mark.slow
def test_a_row_has_all_arms_and_the_settings(small: Inpainter) -> None:
    row = measure_edit(small, make_volume(32, 4, empty_fraction=0.5), EditSettings(steps=2), 1)
    assert row["passed"] and row["gate"].keys() == {"a", "b", "c"}
    assert row["seconds"].keys() == {"ours", "a", "b", "c", "bare"} and row["faster_than"].keys() == {"a", "b", "c"}
    assert (row["slices"], row["repainted"], row["steps"], row["dtype"]) == (4, 2, 2, "float32")
    assert all(0 < peak < 200 for peak in row["peak_mb"].values())


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_an_edit_with_the_embedded_model_equals_diffusers_pipeline(guidance_scale: float) -> None:
    gates = gates_of(models.embedded(CPU), make_volume(64, 3), EditSettings(2, guidance_scale), "abc")
    assert all(gate.passed for gate in gates.values()), gates
    assert gates["b"].largest_difference > 0


def test_arms_that_differ_have_no_speed(small: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = make_volume(32, 2)
    monkeypatch.setattr(inpainting, "_edited", lambda *args: lambda: volume.slices + volume.masks)
    row = measure_edit(small, volume, EditSettings(steps=1), 1)
    assert row["passed"] is False and "seconds" not in row and "faster_than" not in row


def test_the_region_of_interest_is_faster_than_the_whole_slice(small: Inpainter) -> None:
    row = measure_roi(small, 2 * small.size_px, 1, EditSettings(steps=1), 1)
    assert row["size_px"] == 2 * row["roi_px"] == 128 and row["faster"][0] > 1


def test_a_model_in_half_precision_is_compared_with_its_weights_in_float32(small: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inpainting, "GATE_SIZE_PX", 32)
    volume, half = make_volume(32, 2), models.in_precision(small, torch.bfloat16)
    row = measure_edit(half, volume, EditSettings(steps=1), 1, "b", precise=small)
    assert row["gate"].keys() == {"b", "b, float32"} and row["gate"]["b, float32"]["passed"] and row["dtype"] == "bfloat16"


def test_each_volume_is_measured_with_and_without_empty_slices_and_with_other_steps(
    monkeypatch: pytest.MonkeyPatch, small: Inpainter
) -> None:
    monkeypatch.setattr(models, "embedded", lambda device: small)
    monkeypatch.setattr(inpainting, "embedded", lambda device: small)
    monkeypatch.setattr(inpainting, "measure_edit", lambda model, volume, settings, rounds, rivals, precise: {"steps": settings.steps})
    monkeypatch.setattr(inpainting, "measure_roi", lambda model, size_px, *args: {"size_px": size_px})
    amount = Amount(rounds=1, volumes=((32, 4), (64, 2)), steps=8, other_steps=(4,), larger_models=False)
    figures = measure_inpainting(CPU, amount)
    assert [(row["empty_fraction"], row["steps"]) for row in figures["edits"]] == [(0.0, 8), (0.5, 8), (0.0, 4), (0.0, 8), (0.5, 8)]
    assert figures["roi"] == [{"model": "embedded", "size_px": 128}]


def test_the_step_of_the_sampler_equals_that_of_diffusers_and_is_timed() -> None:
    row = measure_scheduler_step(CPU, Amount(rounds=1, steps=3), (1, 4, 8, 8))
    assert 0 <= row["relative_difference"] < 1e-5 and row["shape"] == [1, 4, 8, 8]
    assert row["microseconds"].keys() == {"ours", "diffusers"} and row["microseconds"]["ours"][0] > 0
    assert row["faster"][0] == pytest.approx(row["microseconds"]["diffusers"][0] / row["microseconds"]["ours"][0])
