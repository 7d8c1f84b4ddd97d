"""A look at the clean latents that are predicted on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from monai_diffaug.sampling.inpaint_latents import inpaint_latents
from monai_diffaug.sampling.step import predicted_clean

CLEAN, NOISE = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def run(denoise: Any, scheduler: Any, look: Any = None, **options: Any) -> Tensor:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    return inpaint_latents(
        denoise, scheduler, clean=CLEAN, noise=NOISE, mask=mask, context=torch.zeros(1, 2, 3), num_inference_steps=4, look=look, **options
    )


def shifted(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    return latents[:, :4] * 0.3 + 0.001 * timestep


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_a_perfect_prediction_stands_for_the_clean_latents(kind: Any, prediction_type: str) -> None:
    scheduler = kind(prediction_type=prediction_type)
    for step in (999, 500, 10):
        timestep = torch.tensor(step)
        signal = scheduler.alphas_cumprod[step]
        noisy = signal.sqrt() * CLEAN + (1 - signal).sqrt() * NOISE
        perfect = {"epsilon": NOISE, "sample": CLEAN, "v_prediction": signal.sqrt() * NOISE - (1 - signal).sqrt() * CLEAN}[prediction_type]
        assert torch.allclose(predicted_clean(scheduler, timestep, noisy, perfect), CLEAN, atol=1e-3)


def test_a_scheduler_that_scales_its_latents_otherwise_is_named_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="EulerDiscreteScheduler.*screen_after=1"):
        run(shifted, EulerDiscreteScheduler(), (0.5, lambda clean: True))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(clip_sample=False), DPMSolverMultistepScheduler()])
@pytest.mark.parametrize(("share", "calls"), [(0.01, 1), (0.25, 1), (0.3, 2), (0.75, 3), (1.0, 4)])
def test_a_run_ends_when_the_look_says_no_and_is_the_same_when_it_says_yes(scheduler: Any, share: float, calls: int) -> None:
    seen: list[Tensor] = []
    made: list[int] = []

    def counted(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        made.append(int(timestep))
        return shifted(latents, timestep, context)

    ended = run(counted, scheduler, (share, lambda clean: bool(seen.append(clean))))
    assert len(made) == calls and len(seen) == 1 and torch.equal(ended, seen[0])
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:6] = False
    assert torch.equal(ended[..., outside], CLEAN[..., outside]) and not torch.equal(ended, CLEAN)
    plain, watched = run(shifted, scheduler), run(shifted, scheduler, (share, lambda clean: True))
    assert torch.equal(plain, watched)


def test_the_estimate_of_the_last_step_of_ddim_is_the_result() -> None:
    seen: list[Tensor] = []
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    result = run(shifted, scheduler, (1.0, lambda clean: not seen.append(clean)))
    assert torch.allclose(result, seen[0], atol=1e-4)
