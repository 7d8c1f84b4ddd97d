"""Inpainting in latent space: one loop for 9-channel inpainting UNets and plain 4-channel UNets."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from monai_diffaug.sampling.schedule import prepare_schedule
from monai_diffaug.sampling.step import make_step, predicted_clean

__all__ = ["Denoiser", "inpaint_latents"]


class Denoiser(Protocol):
    """Interface of the UNet: latents (B, C, h, w), timestep, text states (B, L, D) -> prediction (B, 4, h, w).

    A denoiser with ``shares_latents = True`` also accepts text states (2B, L, D), for the two branches of guidance: both branches use
    the same latents, and the prediction has 2B rows.
    """

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor: ...


def inpaint_latents(
    denoise: Denoiser,
    scheduler: Any,
    *,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor,
    context: Tensor,
    masked: Tensor | None = None,
    soft: Tensor | None = None,
    negative_context: Tensor | None = None,
    guidance_scale: float = 1.0,
    num_inference_steps: int = 20,
    strength: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    trajectory: Tensor | None = None,
    generators: list[torch.Generator] | None = None,
    draws: AbstractContextManager[Any] | None = None,
    noise_gain: float = 0.0,
    look: tuple[float, Callable[[Tensor], bool]] | None = None,
) -> Tensor:
    """Repaint latents inside a mask.

    With ``masked`` the UNet gets mask and masked image (9 channels). Without it, the region outside the mask is replaced after each
    step by the original at the noise level of that step (Lugmayr et al. 2022, "RePaint"; diffusers' 4-channel pipeline). With
    ``soft`` the replaced region shrinks from step to step: after step i of N, latents are the noised original where 1 - soft > i/N
    (Levin and Fried 2023, "Differential Diffusion").

    Args:
        denoise: the UNet behind the ``Denoiser`` interface.
        scheduler: any diffusers scheduler; it is copied, not changed.
        clean: (B, 4, h, w) scaled latents of the image.
        noise: (B, 4, h, w) standard normal.
        mask: (B, 1, h, w) in {0, 1}, 1 means repaint.
        context: (B, L, D) text states of the prompt.
        masked: (B, 4, h, w) scaled latents of the image with the masked pixels set to grey; only for 9-channel UNets.
        soft: (B, 1, h, w) in [0, 1]; None keeps the hard mask.
        negative_context: (B, L, D), needed when guidance_scale > 1.
        guidance_scale: weight of classifier-free guidance (Ho and Salimans 2022); <= 1 means none and one UNet call per step.
        num_inference_steps: steps of a full run.
        strength: share of the steps that is run, see ``prepare_schedule``.
        guidance_interval: begin and end of guidance as shares of the steps, from the noisiest on (Kynkaanniemi et al. 2024); outside
            it a step costs one UNet evaluation instead of two.
        trajectory: (n + 1, B, 4, h, w) of ``invert_latents``: the originals for the replaced region, instead of noised ``clean``.
        generators: one per sample, for stochastic schedulers.
        draws: context of their draws, see ``monai_diffaug.sampling.coherent_noise.CoherentDraws``.
        noise_gain: amplifies the predicted noise of DDIM, see ``monai_diffaug.sampling.step.noise_factor``.
        look: (share, accept): after that share of the steps, in (0, 1], ``accept`` gets the clean latents (B, 4, h, w) predicted so
            far. If it returns False, the run ends and returns them; otherwise the result does not depend on ``look``.

    Returns:
        (B, 4, h, w) scaled latents.

    Raises:
        ValueError: no negative context although guidance needs one, an empty guidance interval, a noise gain for another scheduler than
            DDIM, or as ``prepare_schedule``.

    >>> from diffusers import DDIMScheduler
    >>> clean, mask = torch.zeros(1, 4, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    >>> result = inpaint_latents(
    ...     lambda latents, timestep, context: torch.zeros_like(latents), DDIMScheduler(clip_sample=False), clean=clean,
    ...     noise=torch.ones(1, 4, 2, 2), mask=mask, context=torch.zeros(1, 1, 1), num_inference_steps=2,
    ... )
    >>> (result != 0)[0, 0].tolist()
    [[True, False], [False, False]]
    """
    guided = guidance_scale > 1.0
    begin, end = guidance_interval
    if not 0.0 <= begin < end <= 1.0:
        raise ValueError(f"guidance_interval must be (begin, end) with 0 <= begin < end <= 1, got {guidance_interval}")
    if guided and negative_context is None:
        raise ValueError("guidance_scale > 1 needs negative_context, the text states of the negative (or empty) prompt")
    scheduler, timesteps = prepare_schedule(scheduler, num_inference_steps, strength, clean.device)
    latents = noise * scheduler.init_noise_sigma if strength >= 1.0 else scheduler.add_noise(clean, noise, timesteps[:1])
    weights = mask if soft is None else soft
    replaces_outside = masked is None or soft is not None
    states = torch.cat([negative_context, context]) if guided and negative_context is not None else context
    shares_latents = bool(getattr(denoise, "shares_latents", False))
    step = make_step(scheduler, timesteps, generators, draws=draws, noise_gain=noise_gain)
    look_step = -1 if look is None else max(math.ceil(look[0] * len(timesteps)) - 1, 0)
    for i, timestep in enumerate(timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        if masked is not None:
            model_input = torch.cat([model_input, mask, masked], dim=1)
        if guided and begin <= i / len(timesteps) < end:
            both = model_input if shares_latents else torch.cat([model_input] * 2)
            unconditional, conditional = denoise(both, timestep, states).chunk(2)
            prediction = torch.lerp(unconditional, conditional, guidance_scale)
        else:
            prediction = denoise(model_input, timestep, context)
        if look is not None and i == look_step:
            estimate = predicted_clean(scheduler, timestep, latents, prediction)
            estimate = torch.where(weights > 0, estimate, clean) if replaces_outside else estimate
            if not look[1](estimate):
                return estimate
        latents = step(i, prediction, latents)
        if replaces_outside:
            if i + 1 == len(timesteps):
                original = clean
            elif trajectory is None:
                original = scheduler.add_noise(clean, noise, timesteps[i + 1 : i + 2])
            else:
                original = trajectory[i + 1]
            latents = torch.where(1 - weights > i / len(timesteps), original, latents)
    return latents
