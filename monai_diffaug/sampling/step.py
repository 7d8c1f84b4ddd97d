"""One step of the sampler: two tensor operations with precomputed coefficients for DDIM, the scheduler's method for all others."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Step", "linear_coefficients", "make_step", "predicted_clean"]

Step = Callable[[int, Tensor, Tensor], Tensor]
"""(index of the timestep, the UNet's prediction, latents) -> latents of the next noise level."""

DDIM = "diffusers.schedulers.scheduling_ddim", "DDIMScheduler"


def make_step(scheduler: Any, timesteps: Tensor, generators: list[torch.Generator] | None = None) -> Step:
    """The step of a scheduler for the timesteps of a run.

    DDIM without noise (eta 0), clipping and thresholding is linear in latents and prediction. Its step is one scaling and one addition,
    without reading a GPU tensor in between. For all other schedulers, also subclasses of DDIM, the step is their ``step`` method.

    Args:
        scheduler: a diffusers scheduler after ``set_timesteps``; its steps may change its state.
        timesteps: of the run, from the noisiest on.
        generators: one per sample, for stochastic schedulers.

    >>> from diffusers import DDIMScheduler
    >>> scheduler = DDIMScheduler(clip_sample=False)
    >>> scheduler.set_timesteps(2)
    >>> step = make_step(scheduler, scheduler.timesteps)
    >>> latents, prediction = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    >>> expected = scheduler.step(prediction, scheduler.timesteps[0], latents).prev_sample
    >>> torch.allclose(step(0, prediction, latents), expected)
    True
    """
    coefficients = linear_coefficients(scheduler, timesteps)
    if coefficients is not None:
        pairs = coefficients

        def linear(i: int, prediction: Tensor, latents: Tensor) -> Tensor:
            keep, move = pairs[i]
            return torch.mul(latents, keep).add_(prediction, alpha=move)

        return linear
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if generators is not None and "generator" in accepted else {}

    def scheduled(i: int, prediction: Tensor, latents: Tensor) -> Tensor:
        result: Tensor = scheduler.step(prediction, timesteps[i], latents, return_dict=False, **extra)[0]
        return result

    return scheduled


def linear_coefficients(scheduler: Any, timesteps: Tensor) -> list[tuple[float, float]] | None:
    """Pairs (keep, move) with next latents = keep * latents + move * prediction; None if the scheduler's step is not linear.

    Clean latents x0 and noise e follow from latents and prediction. With b = alpha_bar of the next timestep the next latents are
    sqrt(b) x0 + sqrt(1 - b) e (Song et al. 2021, "Denoising diffusion implicit models", equation 12 with sigma = 0).

    Args:
        scheduler: a diffusers scheduler after ``set_timesteps``.
        timesteps: of the run.
    """
    kind = type(scheduler)
    if (kind.__module__, kind.__name__) != DDIM or scheduler.config.clip_sample or scheduler.config.thresholding:
        return None
    alphas = scheduler.alphas_cumprod.tolist()
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    pairs = []
    for timestep in timesteps.tolist():
        following = timestep - stride
        a, b = alphas[timestep], alphas[following] if following >= 0 else float(scheduler.final_alpha_cumprod)
        parts = _clean_and_noise(scheduler.config.prediction_type, math.sqrt(a), math.sqrt(1 - a))
        if parts is None:
            return None
        (clean_l, clean_p), (noise_l, noise_p) = parts
        signal, sigma = math.sqrt(b), math.sqrt(1 - b)
        pairs.append((signal * clean_l + sigma * noise_l, signal * clean_p + sigma * noise_p))
    return pairs


def predicted_clean(scheduler: Any, timestep: Tensor, latents: Tensor, prediction: Tensor) -> Tensor:
    """The clean latents x0 that follow from a prediction at a timestep.

    Raises:
        ValueError: the scheduler does not scale latents by its ``alphas_cumprod`` (e.g. Euler), or has another prediction type.

    >>> from diffusers import DDIMScheduler
    >>> predicted_clean(DDIMScheduler(prediction_type="sample"), torch.tensor(500), torch.zeros(1), torch.ones(1)).item()
    1.0
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is not None and float(scheduler.init_noise_sigma) == 1.0:
        signal = float(alphas[int(timestep)])
        parts = _clean_and_noise(scheduler.config.prediction_type, math.sqrt(signal), math.sqrt(1 - signal))
        if parts is not None:
            of_latents, of_prediction = parts[0]
            return latents * of_latents + prediction * of_prediction
    raise ValueError(
        f"{type(scheduler).__name__} ({scheduler.config.prediction_type}) gives no clean latents at timestep {int(timestep)}; look at the "
        "end of the run (screen_after=1), or use a scheduler of the DDIM or DPM-Solver kind"
    )


def _clean_and_noise(prediction_type: str, signal: float, sigma: float) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Factors of (latents, prediction) of the clean latents and of the noise; None if one is infinite or the type unknown.

    From x_t = signal x0 + sigma e and v = signal e - sigma x0 (Salimans and Ho 2022, "Progressive distillation", appendix D).
    """
    if prediction_type == "v_prediction":
        return (signal, -sigma), (sigma, signal)
    if prediction_type == "epsilon" and signal > 0:
        return (1 / signal, -sigma / signal), (0.0, 1.0)
    if prediction_type == "sample" and sigma > 0:
        return (0.0, 1.0), (1 / sigma, -signal / sigma)
    return None
