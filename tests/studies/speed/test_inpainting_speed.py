"""Repainting against diffusers' pipeline: equal on random and on trained weights, and no speed when not."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed import inpainting_speed as inpainting
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.inpainting_speed import gates_of, measure_edit, measure_roi
from monai_diffaug.studies.speed.speed_settings import EditSettings
from monai_diffaug.studies.speed.timed_volumes import make_volume

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)


def test_a_row_has_all_arms_and_says_what_was_done(small: Inpainter) -> None:
    row = measure_edit(small, make_volume(32, 4, empty_fraction=0.5), EditSettings(steps=2), 1)
    assert row["passed"] and row["gate"].keys() == {"a", "b", "c"}
    assert row["seconds"].keys() == {"ours", "a", "b", "c", "bare"} and row["faster_than"].keys() == {"a", "b", "c"}
    assert (row["slices"], row["repainted"], row["steps"], row["dtype"]) == (4, 2, 2, "float32")
    assert all(0 < peak < 200 for peak in row["peak_mb"].values())


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_embedded_model_gives_what_diffusers_pipeline_gives(guidance_scale: float) -> None:
    gates = gates_of(models.embedded(CPU), make_volume(64, 3), EditSettings(2, guidance_scale), "abc")
    assert all(gate.passed for gate in gates.values()), gates
    assert gates["b"].largest_difference > 0


def test_no_speed_is_told_of_arms_that_differ(small: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = make_volume(32, 2)
    monkeypatch.setattr(inpainting, "_edited", lambda *given: lambda: volume.slices + volume.masks)
    row = measure_edit(small, volume, EditSettings(steps=1), 1)
    assert row["passed"] is False and "seconds" not in row and "faster_than" not in row


def test_the_posterior_is_sampled_again_after_the_measurement(small: Inpainter) -> None:
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as module

    before = module.retrieve_latents
    measure_edit(small, make_volume(32, 1), EditSettings(steps=1), 1, "b")
    assert module.retrieve_latents is before


def test_the_region_of_interest_is_half_the_slice(small: Inpainter) -> None:
    row = measure_roi(small, 2 * small.size_px, 1, EditSettings(steps=1), 1)
    assert row["size_px"] == 2 * row["roi_px"] == 128 and row["faster"][0] > 1


def test_the_medium_unet_has_25_million_weights() -> None:
    unet = models.medium(CPU).unet
    assert 24e6 < sum(weight.numel() for weight in unet.parameters()) < 26e6


def test_another_precision_and_another_scheduler_leave_the_model_as_it_is(small: Inpainter) -> None:
    from diffusers import UniPCMultistepScheduler

    assert models.in_precision(small, torch.bfloat16).dtype == torch.bfloat16 and small.dtype == torch.float32
    other = models.with_scheduler(small, UniPCMultistepScheduler)
    assert other.unet is small.unet and type(other.scheduler) is not type(small.scheduler)


def test_a_model_in_half_precision_is_gated_by_its_weights_in_float32(small: Inpainter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inpainting, "GATE_SIZE_PX", 32)
    volume, half = make_volume(32, 2), models.in_precision(small, torch.bfloat16)
    row = measure_edit(half, volume, EditSettings(steps=1), 1, "b", precise=small)
    assert row["gate"].keys() == {"b", "b, float32"} and row["gate"]["b, float32"]["passed"] and row["dtype"] == "bfloat16"
