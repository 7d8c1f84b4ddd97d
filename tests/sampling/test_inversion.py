from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from monai_diffaug.sampling.inpaint_latents import inpaint_latents
from monai_diffaug.sampling.inversion import invert_latents
from monai_diffaug.training.embedded.architectures import build_scheduler

SPREAD = 0.5


def scheduler_of(prediction_type: str) -> DDIMScheduler:
    if prediction_type == "v_prediction":
        return build_scheduler()
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, prediction_type=prediction_type
    )


class SmoothImages:
    """The optimal denoiser of images with standard deviation 0.5, with a dependence on neighbours and a non-linear term."""

    def __init__(self, scheduler: DDIMScheduler) -> None:
        self.scheduler = scheduler
        self.calls = 0

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        state = latents[:, :4]
        alpha_bar = float(self.scheduler.alphas_cumprod[int(timestep)])
        signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        smoothed = 0.5 * state + 0.5 * F.avg_pool2d(state, 3, 1, 1)
        clean = signal * SPREAD**2 / (signal**2 * SPREAD**2 + noise**2) * smoothed + 0.05 * torch.sin(3 * smoothed)
        eps = (state - signal * clean) / noise
        kind = self.scheduler.config.prediction_type
        return {"epsilon": eps, "sample": clean, "v_prediction": signal * eps - noise * clean}[kind]


def latents(n: int = 2) -> torch.Tensor:
    return SPREAD * torch.randn(n, 4, 12, 12, generator=torch.Generator().manual_seed(3))


def sampled(denoise: SmoothImages, clean: torch.Tensor, noise: torch.Tensor, **options: float) -> torch.Tensor:
    return inpaint_latents(
        denoise,
        denoise.scheduler,
        clean=clean,
        noise=noise,
        mask=torch.ones(len(clean), 1, 12, 12),
        masked=torch.zeros_like(clean),
        context=torch.zeros(len(clean), 1, 1),
        **options,
    )


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_sampling_from_the_inverted_noise_returns_the_image(prediction_type: str, strength: float) -> None:
    denoise, clean = SmoothImages(scheduler_of(prediction_type)), latents()
    inversion = invert_latents(
        denoise,
        denoise.scheduler,
        clean=clean,
        context=torch.zeros(2, 1, 1),
        num_inference_steps=12,
        strength=strength,
        evaluations=6,
    )
    back = sampled(denoise, clean, inversion.noise, num_inference_steps=12, strength=strength)
    assert (back - clean).abs().mean() < 0.01 * SPREAD
    assert torch.equal(inversion.trajectory[-1], clean) and len(inversion.trajectory) == (12 if strength == 1 else 6) + 1


def test_more_evaluations_are_more_exact_than_the_plain_inversion() -> None:
    denoise, clean = SmoothImages(scheduler_of("v_prediction")), latents()
    errors = []
    for counts in ({"evaluations": 1, "evaluations_near_image": 1}, {}):
        inversion = invert_latents(denoise, denoise.scheduler, clean=clean, context=torch.zeros(2, 1, 1), num_inference_steps=12, **counts)
        errors.append(float((sampled(denoise, clean, inversion.noise, num_inference_steps=12) - clean).abs().mean()))
    assert errors[1] < 0.2 * errors[0]


def test_the_inversion_of_a_sample_does_not_depend_on_its_batch_and_draws_no_random_number() -> None:
    denoise, clean = SmoothImages(scheduler_of("v_prediction")), latents(3)
    before = torch.get_rng_state()
    together = invert_latents(denoise, denoise.scheduler, clean=clean, context=torch.zeros(3, 1, 1), num_inference_steps=6)
    alone = invert_latents(denoise, denoise.scheduler, clean=clean[1:2], context=torch.zeros(1, 1, 1), num_inference_steps=6)
    assert torch.allclose(together.noise[1:2], alone.noise, atol=1e-4)
    assert torch.equal(before, torch.get_rng_state())


def test_an_image_of_zeros_gives_finite_noise() -> None:
    denoise = SmoothImages(scheduler_of("v_prediction"))
    inversion = invert_latents(denoise, denoise.scheduler, clean=torch.zeros(1, 4, 12, 12), context=torch.zeros(1, 1, 1))
    assert torch.isfinite(inversion.noise).all()


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DPMSolverMultistepScheduler()])
def test_a_scheduler_whose_step_has_no_inverse_is_refused_with_an_alternative(scheduler: object) -> None:
    with pytest.raises(ValueError, match="DDIMScheduler.from_config"):
        invert_latents(lambda x, t, c: x, scheduler, clean=latents(), context=torch.zeros(2, 1, 1))


def test_epsilon_at_zero_terminal_snr_is_refused() -> None:
    scheduler = DDIMScheduler.from_config(build_scheduler().config, prediction_type="epsilon")
    with pytest.raises(ValueError, match="v_prediction"):
        invert_latents(lambda x, t, c: 0.1 * x, scheduler, clean=latents(), context=torch.zeros(2, 1, 1))
