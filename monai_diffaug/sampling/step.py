"""One step of the sampler: DDIM as two tensor operations with coefficients known beforehand, any other scheduler as it is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Step", "linear_coefficients", "make_step", "predicted_clean"]

Step = Callable[[int, Tensor, Tensor], Tensor]
"""(position in the timesteps, the UNet's prediction, latents) -> latents of the next noise level."""

DDIM = "diffusers.schedulers.scheduling_ddim", "DDIMScheduler"


def make_step(scheduler: Any, timesteps: Tensor, generators: list[torch.Generator] | None = None) -> Step:
    """The step of a scheduler over the timesteps that a run visits.

    DDIM without noise (eta 0), clipping and thresholding is linear in latents and prediction, so its step is one scaling and one
    addition, with no read of a GPU tensor in between. Every other scheduler, subclasses of DDIM too, is asked itself.

    Args:
        scheduler: a diffusers scheduler after ``set_timesteps``; stateful ones are changed by the steps.
        timesteps: those visited, from the noisiest on.
        generators: one a sample, for stochastic schedulers.
    """
    coefficients = linear_coefficients(scheduler, timesteps)
    if coefficients is not None:
        known = coefficients

        def linear(i: int, prediction: Tensor, latents: Tensor) -> Tensor:
            keep, move = known[i]
            return torch.mul(latents, keep).add_(prediction, alpha=move)

        return linear
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if generators is not None and "generator" in accepted else {}

    def own(i: int, prediction: Tensor, latents: Tensor) -> Tensor:
        stepped: Tensor = scheduler.step(prediction, timesteps[i], latents, return_dict=False, **extra)[0]
        return stepped

    return own


def linear_coefficients(scheduler: Any, timesteps: Tensor) -> list[tuple[float, float]] | None:
    """Pairs (keep, move) with next latents = keep * latents + move * prediction; None when the scheduler's step is not that.

    With a = alpha_bar of the timestep and b = that of the next: the clean latents x0 and the noise e follow from latents and
    prediction, and the next latents are sqrt(b) x0 + sqrt(1 - b) e (Song et al. 2021, "Denoising diffusion implicit models",
    equation 12 with sigma = 0).

    Args:
        scheduler: a diffusers scheduler after ``set_timesteps``.
        timesteps: those visited.
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
    """The clean latents x0 that a prediction at a timestep stands for.

    Raises:
        ValueError: the scheduler does not scale latents by its ``alphas_cumprod`` (Euler's kind), or predicts something else.
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
    """Clean latents and noise, each as its factors of (latents, prediction); None where a factor is infinite or the type unknown."""
    if prediction_type == "v_prediction":
        return (signal, -sigma), (sigma, signal)
    if prediction_type == "epsilon" and signal > 0:
        return (1 / signal, -sigma / signal), (0.0, 1.0)
    if prediction_type == "sample" and sigma > 0:
        return (0.0, 1.0), (1 / sigma, -signal / sigma)
    return None
