"""The callback that gets the clean latents predicted during a run."""

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
def test_the_clean_latents_of_a_perfect_prediction_are_exact(kind: Any, prediction_type: str) -> None:
    scheduler = kind(prediction_type=prediction_type)
    for step in (999, 500, 10):
        timestep = torch.tensor(step)
        signal = scheduler.alphas_cumprod[step]
        noisy = signal.sqrt() * CLEAN + (1 - signal).sqrt() * NOISE
        perfect = {"epsilon": NOISE, "sample": CLEAN, "v_prediction": signal.sqrt() * NOISE - (1 - signal).sqrt() * CLEAN}[prediction_type]
        assert torch.allclose(predicted_clean(scheduler, timestep, noisy, perfect), CLEAN, atol=1e-3)


def test_a_scheduler_with_another_scaling_of_latents_is_refused_with_an_alternative() -> None:
    with pytest.raises(ValueError, match="EulerDiscreteScheduler.*screen_after=1"):
        run(shifted, EulerDiscreteScheduler(), (0.5, lambda clean: True))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(clip_sample=False), DPMSolverMultistepScheduler()])
@pytest.mark.parametrize(("share", "calls"), [(0.01, 1), (0.25, 1), (0.3, 2), (0.75, 3), (1.0, 4)])
def test_a_run_ends_if_the_callback_rejects_and_is_unchanged_if_it_accepts(scheduler: Any, share: float, calls: int) -> None:
    estimates: list[Tensor] = []
    timesteps: list[int] = []

    def counted(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        timesteps.append(int(timestep))
        return shifted(latents, timestep, context)

    ended = run(counted, scheduler, (share, lambda clean: bool(estimates.append(clean))))
    assert len(timesteps) == calls and len(estimates) == 1 and torch.equal(ended, estimates[0])
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:6] = False
    assert torch.equal(ended[..., outside], CLEAN[..., outside]) and not torch.equal(ended, CLEAN)
    plain, watched = run(shifted, scheduler), run(shifted, scheduler, (share, lambda clean: True))
    assert torch.equal(plain, watched)


def test_the_estimate_of_the_last_step_of_ddim_is_the_result() -> None:
    estimates: list[Tensor] = []
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    result = run(shifted, scheduler, (1.0, lambda clean: not estimates.append(clean)))
    assert torch.allclose(result, estimates[0], atol=1e-4)
