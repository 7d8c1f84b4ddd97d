"""The loss of the latent validator, and the linear read-out of masks that it uses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.models.validator import NUM_TRAIN_TIMESTEPS, LatentSegmenter, mask_latents

__all__ = ["Probe", "fit_probe", "soft_dice_and_entropy", "validator_loss"]

LAST_STEP_SHARE = 0.75  # of the samples train the one timestep that inference uses
DICE_WEIGHT = 1.0
Z0_WEIGHT = 1.0  # of |z0 - z0hat| relative to |eps - eps_th|
ENCODED_AT_ONCE = 16

Probe = tuple[Tensor, Tensor]  # weight (1, C, 3, 3) and bias (1,) of a convolution


@torch.no_grad()
def fit_probe(vae: Any, masks: Tensor) -> Probe:
    """A 3x3 convolution that reads a mask, from -1 to 1 on the latent grid, out of the latents of its picture; by least squares.

    It stands for the decoder in the loss: the decoder would cost as much as the rest of a step.

    Args:
        vae: diffusers AutoencoderKL.
        masks: (N, 1, S, S) in {0, 1}, on the device of the VAE.
    """
    latents = torch.cat([mask_latents(vae, some) for some in masks.split(ENCODED_AT_ONCE)]).cpu()
    target = F.adaptive_avg_pool2d(masks.cpu(), (latents.shape[-2], latents.shape[-1])) * 2 - 1
    columns = F.unfold(latents, 3, padding=1).transpose(1, 2).flatten(0, 1)
    columns = torch.cat([columns, torch.ones(len(columns), 1)], 1).double()
    gram = columns.T @ columns + 1e-3 * torch.eye(columns.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, columns.T @ target.reshape(-1, 1).double()).float()[:, 0]
    return solution[:-1].reshape(1, latents.shape[1], 3, 3), solution[-1:]


def soft_dice_and_entropy(read_out: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum p t + 8) / (sum p + sum t + 8) plus the binary cross-entropy, with p = sigmoid(4 read_out); a scalar.

    Args:
        read_out: (N, 1, h, w), -1 to 1.
        target: (N, 1, h, w) in [0, 1].
    """
    logits = 4 * read_out  # 1 is 98 % sure
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 8) / (probability.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 8)
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, target)


def validator_loss(
    segmenter: LatentSegmenter, z0: Tensor, images: Tensor, masks: Tensor, probe: Probe, generator: torch.Generator
) -> Tensor:
    """|z0 - z0hat| (x0 form) or |eps - eps_th| + |z0 - z0hat| (SDSeg), plus Dice and entropy of the mask read from z0hat.

    SDSeg is Lin et al., MICCAI 2024, equation 4.

    Args:
        segmenter: in training.
        z0: (N, C, h, w) scaled latents of the masks.
        images: (N, 3, S, S) in [-1, 1].
        masks: (N, 1, S, S) in {0, 1}, empty on normal tissue.
        probe: of ``fit_probe``.
        generator: of timesteps and noise, on the CPU.
    """
    n = len(z0)
    uniform = torch.randint(NUM_TRAIN_TIMESTEPS, (n,), generator=generator)
    is_last = torch.rand(n, generator=generator) < LAST_STEP_SHARE
    timesteps = torch.where(is_last, NUM_TRAIN_TIMESTEPS - 1, uniform).to(z0.device)
    noise = torch.randn(z0.shape, generator=generator).to(z0)
    z_t = segmenter.add_noise(z0, noise, timesteps)
    prediction = segmenter(images, z_t, timesteps)
    z0hat = segmenter.z0_of(prediction, z_t, timesteps).float()  # half precision cannot sum the pixels of a mask
    loss = Z0_WEIGHT * F.l1_loss(z0hat, z0)
    if segmenter.prediction_type == "epsilon":
        loss = loss + F.l1_loss(prediction, noise)
    weight, bias = probe
    read_out = F.conv2d(z0hat, weight.to(z0hat), bias.to(z0hat), padding=1).float()
    target = F.adaptive_avg_pool2d(masks, (read_out.shape[-2], read_out.shape[-1]))
    return loss + DICE_WEIGHT * soft_dice_and_entropy(read_out, target)
