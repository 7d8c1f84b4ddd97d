"""The denoising loss of the recipes that train an inpainter, or a network that steers one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.sampling.inpaint_latents import Denoiser

__all__ = ["EncodedCrops", "denoising_loss", "encode_crops", "forward_process", "lesion_weighted_loss", "lesion_weights"]

MIN_SNR_GAMMA = 5.0


class EncodedCrops(NamedTuple):
    """N crops as input of the UNet."""

    latents: Tensor  # (N, 4, h, w) scaled latents of the crops
    mask: Tensor  # (N, 1, h, w) in {0, 1}, the part to repaint
    masked: Tensor  # (N, 4, h, w) scaled latents of the crops with that part greyed out


@torch.no_grad()
def encode_crops(model: Inpainter, images: Tensor, hidden: Tensor) -> EncodedCrops:
    """Encode images (N, 3, S, S) in [-1, 1] whose part ``hidden`` (N, 1, S, S) in {0, 1} is to be repainted."""
    if model.takes_mask:
        latents, masked = model.encode(torch.cat([images, images * (hidden < 0.5)])).chunk(2)
    else:
        latents = masked = model.encode(images)
    return EncodedCrops(latents, model.latent_mask(hidden), masked)


@lru_cache(maxsize=4)  # it is needed at each step
def forward_process(scheduler: Any) -> Any:
    """The noising process of a model: the betas and the prediction type of its scheduler, whatever sampler that is.

    Samplers such as Euler's scale their noise in another way, and most of them know no velocity.
    """
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(scheduler.config)


def lesion_weights(mask: Tensor) -> Tensor:
    """(B, 1, h, w) in [0, 1] -> weights that count the mask twice, with mean 1 in each row of the batch."""
    weights: Tensor = (1 + mask) / (1 + mask).mean(dim=(1, 2, 3), keepdim=True)
    return weights


def lesion_weighted_loss(prediction: Tensor, target: Tensor, mask: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """Mean of w_snr * w_mask * (prediction - target)^2, with w_mask twice as large under the mask.

    w_snr is the min-SNR weight of Hang et al. (ICCV 2023, section 3.4) with gamma 5 and SNR = ab / (1 - ab): min(SNR, 5) for the clean
    latents and min(SNR, 5) / SNR for the noise. For the velocity it is 1: their min(SNR, 5) / (SNR + 1) leaves out the last step of a
    zero-terminal-SNR schedule, and starves the steps of little noise, which paint the fine texture.

    Args:
        prediction: (B, 4, h, w) output of the UNet.
        target: (B, 4, h, w) velocity, noise or clean latents.
        mask: (B, 1, h, w) in [0, 1].
        alpha_bar: (B,) cumulative alphas of the timesteps.
        prediction_type: "v_prediction", "epsilon" or "sample".

    Raises:
        ValueError: unknown prediction type.
    """
    snr = alpha_bar / (1 - alpha_bar).clamp_min(1e-8)
    weight = snr.clamp_max(MIN_SNR_GAMMA)
    if prediction_type == "v_prediction":
        weight = torch.ones_like(snr)
    elif prediction_type == "epsilon":
        weight = weight / snr.clamp_min(1e-8)
    elif prediction_type != "sample":
        raise ValueError(f"the scheduler's prediction_type must be v_prediction, epsilon or sample, got {prediction_type!r}")
    return ((prediction - target).square() * lesion_weights(mask)).mean(dim=(1, 2, 3)).mul(weight).mean()


def denoising_loss(model: Inpainter, denoise: Denoiser, crops: EncodedCrops, context: Tensor, steps: Tensor, noise: Tensor) -> Tensor:
    """The ``lesion_weighted_loss`` of one denoising step.

    Args:
        model: inpainter; gives the noising process.
        denoise: its UNet, or one that is steered.
        crops: encoded crops.
        context: (N, L, D) text states.
        steps: (N,) timesteps.
        noise: (N, 4, h, w) standard normal.
    """
    process = forward_process(model.scheduler)
    kind = str(process.config.prediction_type)
    steps, noise = steps.to(crops.latents.device), noise.to(crops.latents)
    noisy = process.add_noise(crops.latents, noise, steps)
    target = noise if kind == "epsilon" else crops.latents
    if kind == "v_prediction":
        target = process.get_velocity(crops.latents, noise, steps)
    inputs = torch.cat([noisy, crops.mask, crops.masked], 1) if model.takes_mask else noisy
    prediction = denoise(inputs, steps, context)
    alpha_bar = process.alphas_cumprod.to(steps.device)[steps]
    return lesion_weighted_loss(prediction.float(), target.float(), crops.mask.float(), alpha_bar, kind)
