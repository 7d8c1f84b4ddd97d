"""Inpainting in latent space: one loop for 9-channel inpainting UNets and plain 4-channel UNets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from monai_diffaug.sampling.schedule import prepare_schedule
from monai_diffaug.sampling.step import make_step, predicted_clean

__all__ = ["Denoiser", "inpaint_latents"]


class Denoiser(Protocol):
    """The interface of the UNet: latents (B, C, h, w), timestep, text states (B, L, D) -> prediction (B, 4, h, w).

    One with ``shares_latents = True`` takes twice as many text states as latents too, for the two branches of guidance: the latents
    then stand for both, and the prediction has as many rows as the text states.
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
    look: tuple[float, Callable[[Tensor], bool]] | None = None,
) -> Tensor:
    """Repaint latents inside a mask.

    With ``masked`` the UNet is given mask and masked image (9 channels); without, the region outside the mask is put
    back after each step at the noise level that the step has reached (Lugmayr et al. 2022; diffusers' 4-channel
    pipeline). With ``soft`` the region put back shrinks from step to step: at step i of N latents stay the noised
    original where 1 - soft > i/N (Differential Diffusion, Levin and Fried 2023).

    Args:
        denoise: the UNet behind the ``Denoiser`` interface.
        scheduler: any diffusers scheduler; it is copied, not changed.
        clean: (B, 4, h, w) scaled latents of the image.
        noise: (B, 4, h, w) standard normal.
        mask: (B, 1, h, w) in {0, 1}, 1 means repaint.
        context: (B, L, D) text states of the prompt.
        masked: (B, 4, h, w) scaled latents of the image with the mask greyed out; only for 9-channel UNets.
        soft: (B, 1, h, w) in [0, 1]; None keeps the hard mask.
        negative_context: (B, L, D), needed when guidance_scale > 1.
        guidance_scale: classifier-free guidance; <= 1 means none and one UNet call a step.
        num_inference_steps: steps of a full run.
        strength: share of the steps that is run, see ``prepare_schedule``.
        guidance_interval: share of the steps, from the noisiest on, in which guidance acts (Kynkaanniemi et al. 2024); outside
            it a step costs one UNet evaluation instead of two.
        trajectory: (n + 1, B, 4, h, w) of ``invert_latents``; what is put back then comes from it, as ``noise`` lies on it.
        generators: one a sample, for stochastic schedulers.
        look: (share, wanted): after that share of the steps, in (0, 1], ``wanted`` is shown the clean latents predicted by then, with
            what is put back in place; if it says no the run ends and returns them, else it goes on as if nobody had looked.

    Returns:
        (B, 4, h, w) scaled latents.

    Raises:
        ValueError: no negative context where guidance needs one, an empty guidance interval, or as ``prepare_schedule``.
    """
    guided = guidance_scale > 1.0
    begin, end = guidance_interval
    if not 0.0 <= begin < end <= 1.0:
        raise ValueError(f"guidance_interval must be (begin, end) with 0 <= begin < end <= 1, got {guidance_interval}")
    if guided and negative_context is None:
        raise ValueError("guidance_scale > 1 needs negative_context, the text states of the negative (or empty) prompt")
    own, timesteps = prepare_schedule(scheduler, num_inference_steps, strength, clean.device)
    latents = noise * own.init_noise_sigma if strength >= 1.0 else own.add_noise(clean, noise, timesteps[:1])
    weights = mask if soft is None else soft
    put_back = masked is None or soft is not None
    states = torch.cat([negative_context, context]) if guided and negative_context is not None else context
    shared = bool(getattr(denoise, "shares_latents", False))
    step = make_step(own, timesteps, generators)
    looked_at = -1 if look is None else max(math.ceil(look[0] * len(timesteps)) - 1, 0)
    for i, timestep in enumerate(timesteps):
        model_input = own.scale_model_input(latents, timestep)
        if masked is not None:
            model_input = torch.cat([model_input, mask, masked], dim=1)
        if guided and begin <= i / len(timesteps) < end:
            seen = model_input if shared else torch.cat([model_input] * 2)
            unconditional, conditional = denoise(seen, timestep, states).chunk(2)
            prediction = torch.lerp(unconditional, conditional, guidance_scale)
        else:
            prediction = denoise(model_input, timestep, context)
        if look is not None and i == looked_at:
            estimate = predicted_clean(own, timestep, latents, prediction)
            estimate = torch.where(weights > 0, estimate, clean) if put_back else estimate
            if not look[1](estimate):
                return estimate
        latents = step(i, prediction, latents)
        if put_back:
            if i + 1 == len(timesteps):
                original = clean
            elif trajectory is None:
                original = own.add_noise(clean, noise, timesteps[i + 1 : i + 2])
            else:
                original = trajectory[i + 1]
            latents = torch.where(1 - weights > i / len(timesteps), original, latents)
    return latents
