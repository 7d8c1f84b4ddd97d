"""The sampler's step against the step of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, UniPCMultistepScheduler

from monai_diffaug.sampling.schedule import prepare_schedule
from monai_diffaug.sampling.step import linear_coefficients, make_step, predicted_clean

CPU = torch.device("cpu")


def ddim(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(**{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, **options})


def run(scheduler: Any, timesteps: torch.Tensor, *, fused: bool) -> torch.Tensor:
    """A run with random but fixed predictions, with ``make_step`` or with the scheduler's method."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    step = make_step(scheduler, timesteps)
    for i, timestep in enumerate(timesteps):
        prediction = torch.randn(2, 4, 8, 8, generator=generator)
        latents = step(i, prediction, latents) if fused else scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("steps", [1, 7, 12])
@pytest.mark.parametrize("last_alpha_is_one", [False, True])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize(
    ("prediction_type", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", True)]
)
def test_a_run_of_fused_ddim_steps_equals_the_steps_of_diffusers(
    prediction_type: str, zero_snr: bool, spacing: str, last_alpha_is_one: bool, steps: int, strength: float
) -> None:
    scheduler = ddim(
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing=spacing,
        set_alpha_to_one=last_alpha_is_one,
        steps_offset=1 if spacing == "leading" and steps > 1 else 0,
    )
    scheduler, timesteps = prepare_schedule(scheduler, steps, strength, CPU)
    assert linear_coefficients(scheduler, timesteps) is not None
    expected = run(scheduler, timesteps, fused=False)
    torch.testing.assert_close(run(scheduler, timesteps, fused=True), expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


def test_the_step_does_not_change_its_inputs() -> None:
    scheduler, timesteps = prepare_schedule(ddim(), 4, 1.0, CPU)
    latents, prediction = torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    stepped = make_step(scheduler, timesteps)(0, prediction, latents)
    assert torch.equal(latents, torch.ones_like(latents)) and torch.equal(prediction, latents)
    assert not torch.equal(stepped, latents)


@pytest.mark.parametrize("options", [{"clip_sample": True}, {"thresholding": True}, {"rescale_betas_zero_snr": True}])
def test_a_ddim_step_that_is_not_linear_or_divides_by_zero_has_no_coefficients(options: dict[str, Any]) -> None:
    scheduler, timesteps = prepare_schedule(ddim(timestep_spacing="trailing", **options), 4, 1.0, CPU)
    assert linear_coefficients(scheduler, timesteps) is None


def test_a_subclass_of_ddim_uses_its_step() -> None:
    class Halving(DDIMScheduler):
        def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
            return (sample / 2,)

    scheduler, timesteps = prepare_schedule(Halving(clip_sample=False), 4, 1.0, CPU)
    assert torch.equal(make_step(scheduler, timesteps)(0, torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2)), torch.full((1, 4, 2, 2), 0.5))


def test_a_multistep_solver_uses_its_step() -> None:
    runs = []
    for fused in (True, False):
        scheduler, timesteps = prepare_schedule(UniPCMultistepScheduler(), 5, 1.0, CPU)
        runs.append(run(scheduler, timesteps, fused=fused))
    assert torch.equal(*runs)


def test_a_stochastic_scheduler_draws_from_the_generators_of_the_samples() -> None:
    def stepped(seeds: tuple[int, int]) -> torch.Tensor:
        scheduler, timesteps = prepare_schedule(EulerAncestralDiscreteScheduler(), 4, 1.0, CPU)
        step = make_step(scheduler, timesteps, [torch.Generator().manual_seed(seed) for seed in seeds])
        latents = torch.ones(2, 4, 2, 2)
        scheduler.scale_model_input(latents, timesteps[0])
        return step(0, latents, latents)

    one, other = stepped((1, 2)), stepped((1, 3))
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_gain_adds_that_share_of_the_noise_once_a_quarter_of_the_variance_is_image(prediction_type: str) -> None:
    scheduler, timesteps = prepare_schedule(ddim(prediction_type=prediction_type, timestep_spacing="trailing"), 12, 1.0, CPU)
    plain, amplified = make_step(scheduler, timesteps), make_step(scheduler, timesteps, noise_gain=0.2)
    generator = torch.Generator().manual_seed(0)
    latents, prediction = torch.randn(2, 1, 4, 4, 4, generator=generator)
    amplified_steps = 0
    for i, timestep in enumerate(timesteps.tolist()):
        before, after = plain(i, prediction, latents), amplified(i, prediction, latents)
        if scheduler.alphas_cumprod[timestep] <= 0.25:
            assert torch.equal(before, after)
            continue
        amplified_steps += 1
        following = timestep - 1000 // 12
        left = scheduler.alphas_cumprod[following] if following >= 0 else scheduler.final_alpha_cumprod
        noise_term = before - left.sqrt() * predicted_clean(scheduler, timesteps[i], latents, prediction)
        torch.testing.assert_close(after - before, 0.2 * noise_term, rtol=1e-3, atol=1e-4)
    assert 2 <= amplified_steps < 12


def test_a_noise_gain_of_zero_is_the_same_step_to_the_bit() -> None:
    scheduler, timesteps = prepare_schedule(ddim(prediction_type="v_prediction"), 12, 1.0, CPU)
    assert linear_coefficients(scheduler, timesteps, 0.0) == linear_coefficients(scheduler, timesteps)


@pytest.mark.parametrize("scheduler", [UniPCMultistepScheduler(), EulerAncestralDiscreteScheduler(), ddim(clip_sample=True)])
def test_noise_gain_for_another_step_than_that_of_ddim_is_refused(scheduler: Any) -> None:
    scheduler, timesteps = prepare_schedule(scheduler, 4, 1.0, CPU)
    with pytest.raises(ValueError, match=f"noise gain 0.1 needs a DDIMScheduler .*, got {type(scheduler).__name__}; use Noise"):
        make_step(scheduler, timesteps, noise_gain=0.1)
