"""One step of the sampler: two tensor operations with precomputed coefficients for DDIM, the scheduler's method for all others."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["Step", "clean_and_noise", "ddim_move", "linear_coefficients", "make_step", "noise_factor", "predicted_clean"]

Step = Callable[[int, Tensor, Tensor], Tensor]
"""(index of the timestep, the UNet's prediction, latents) -> latents of the next noise level."""

TEXTURE_SIGNAL = 0.25  # alpha_bar from which the noise is amplified: layout is decided below it, texture above
DDIM = "diffusers.schedulers.scheduling_ddim", "DDIMScheduler"


def make_step(
    scheduler: Any,
    timesteps: Tensor,
    generators: list[torch.Generator] | None = None,
    *,
    draws: AbstractContextManager[Any] | None = None,
    noise_gain: float = 0.0,
) -> Step:
    """The step of a scheduler for the timesteps of a run.

    DDIM without noise (eta 0), clipping and thresholding is linear in latents and prediction. Its step is one scaling and one addition,
    without reading a GPU tensor in between. For all other schedulers, also subclasses of DDIM, the step is their ``step`` method.

    Args:
        scheduler: a diffusers scheduler after ``set_timesteps``; its steps may change its state.
        timesteps: of the run, from the noisiest on.
        generators: one per sample, for stochastic schedulers.
        draws: context in which a stochastic scheduler draws from them; None draws as they are.
        noise_gain: amplifies the predicted noise, see ``noise_factor``; 0 leaves the step as it is.

    Raises:
        ValueError: ``noise_gain`` for a scheduler whose step is not that of DDIM.

    >>> from diffusers import DDIMScheduler
    >>> scheduler = DDIMScheduler(clip_sample=False)
    >>> scheduler.set_timesteps(2)
    >>> step = make_step(scheduler, scheduler.timesteps)
    >>> latents, prediction = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    >>> expected = scheduler.step(prediction, scheduler.timesteps[0], latents).prev_sample
    >>> torch.allclose(step(0, prediction, latents), expected)
    True
    """
    coefficients = linear_coefficients(scheduler, timesteps, noise_gain)
    if coefficients is None and noise_gain > 0:
        raise ValueError(
            f"noise gain {noise_gain:g} needs a DDIMScheduler without clip_sample and thresholding, got {type(scheduler).__name__}; "
            "use Noise(gain=0), or give the pipeline DDIMScheduler.from_config(scheduler.config, clip_sample=False)"
        )
    if coefficients is not None:
        pairs = coefficients

        def linear(i: int, prediction: Tensor, latents: Tensor) -> Tensor:
            keep, move = pairs[i]
            return torch.mul(latents, keep).add_(prediction, alpha=move)

        return linear
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if generators is not None and "generator" in accepted else {}

    def scheduled(i: int, prediction: Tensor, latents: Tensor) -> Tensor:
        with nullcontext() if draws is None else draws:
            result: Tensor = scheduler.step(prediction, timesteps[i], latents, return_dict=False, **extra)[0]
        return result

    return scheduled


def noise_factor(alpha_bar: float, gain: float) -> float:
    """Factor of the noise term of a step: 1 + ``gain`` once ``alpha_bar`` exceeds 0.25, else 1.

    A denoiser removes slightly too much noise, since its prediction regresses towards the mean, and the result is too smooth. More noise
    makes up for it, as S_noise of Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", does for the
    fresh noise of a stochastic sampler; DDIM draws none, so the predicted noise is scaled.

    Args:
        alpha_bar: share of the image in the variance of the latents before the step, in [0, 1].
        gain: >= 0.

    >>> noise_factor(0.2, 0.1), noise_factor(0.3, 0.1)
    (1.0, 1.1)
    """
    return 1.0 + gain if alpha_bar > TEXTURE_SIGNAL else 1.0


def linear_coefficients(scheduler: Any, timesteps: Tensor, noise_gain: float = 0.0) -> list[tuple[float, float]] | None:
    """Pairs (keep, move) with next latents = keep * latents + move * prediction; None if the scheduler's step is not linear.

    Clean latents x0 and noise e follow from latents and prediction. With b = alpha_bar of the next timestep the next latents are
    sqrt(b) x0 + sqrt(1 - b) e (Song et al. 2021, "Denoising diffusion implicit models", equation 12 with sigma = 0).

    Args:
        scheduler: a diffusers scheduler after ``set_timesteps``.
        timesteps: of the run.
        noise_gain: see ``noise_factor``.
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
        pair = ddim_move(scheduler.config.prediction_type, a, b, noise_gain)
        if pair is None:
            return None
        pairs.append(pair)
    return pairs


def ddim_move(prediction_type: str, alpha_from: float, alpha_to: float, noise_gain: float = 0.0) -> tuple[float, float] | None:
    """(keep, move) of one step without fresh noise: latents -> keep * latents + move * prediction; None as of ``clean_and_noise``.

    Args:
        prediction_type: "v_prediction", "epsilon" or "sample".
        alpha_from, alpha_to: cumulative alphas before and after the step, in [0, 1].
        noise_gain: see ``noise_factor``.

    >>> [round(factor, 6) for factor in ddim_move("v_prediction", 0.25, 0.25)]
    [1.0, 0.0]
    """
    parts = clean_and_noise(prediction_type, math.sqrt(alpha_from), math.sqrt(1 - alpha_from))
    if parts is None:
        return None
    (clean_l, clean_p), (noise_l, noise_p) = parts
    signal, sigma = math.sqrt(alpha_to), math.sqrt(1 - alpha_to) * noise_factor(alpha_from, noise_gain)
    return signal * clean_l + sigma * noise_l, signal * clean_p + sigma * noise_p


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
        parts = clean_and_noise(scheduler.config.prediction_type, math.sqrt(signal), math.sqrt(1 - signal))
        if parts is not None:
            of_latents, of_prediction = parts[0]
            return latents * of_latents + prediction * of_prediction
    raise ValueError(
        f"{type(scheduler).__name__} ({scheduler.config.prediction_type}) gives no clean latents at timestep {int(timestep)}; look at the "
        "end of the run (screen_after=1), or use a scheduler of the DDIM or DPM-Solver kind"
    )


def clean_and_noise(prediction_type: str, signal: float, sigma: float) -> tuple[tuple[float, float], tuple[float, float]] | None:
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
