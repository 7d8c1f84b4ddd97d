"""The decoder of the inpainter's autoencoder: how well it reproduces the user's images, and its loss where it has to learn them.

The UNet works on latents, so no training of it can produce a colour or texture that the decoder does not know. The encoder is not
trained: the latents keep their meaning, and with it every other network that was trained on them.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.training.crop_sampler import CropSampler
from monai_diffaug.training.texture_loss import texture_loss

__all__ = ["POOR_DB", "decoder_loss", "decoder_modules", "is_poor", "psnr_db", "reconstruction_loss"]

logger = logging.getLogger(__name__)

POOR_DB = 28.0  # the embedded autoencoder reaches more than 30 dB on every modality it knows
JUDGED_CROPS = 8
DECODED_CROPS = 4  # per step
WINDOW_SHARE = 2  # windows of half the crop's side are decoded: they cost a quarter, so more crops can be decoded


def reconstruction_loss(decoded: Tensor, target: Tensor, texture_weight: float = 0.0) -> Tensor:
    """mean |d| + 2 mean d^2 + 0.5 (mean |D_x d| + mean |D_y d|) of the error d; D are finite differences, which keep edges and speckle.

    Args:
        decoded: (B, 3, H, W) in [-1, 1].
        target: the same.
        texture_weight: of ``texture_loss``, which is added when it is above 0.

    >>> target = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> flat = torch.full_like(target, 0.5)
    >>> bool(reconstruction_loss(flat, target) < reconstruction_loss(flat, target, texture_weight=0.15))
    True
    """
    gradient = F.l1_loss(decoded.diff(dim=-1), target.diff(dim=-1)) + F.l1_loss(decoded.diff(dim=-2), target.diff(dim=-2))
    loss = F.l1_loss(decoded, target) + 2 * F.mse_loss(decoded, target) + 0.5 * gradient
    return loss + texture_weight * texture_loss(decoded, target) if texture_weight > 0 else loss


def psnr_db(decoded: Tensor, images: Tensor) -> float:
    """Peak signal-to-noise ratio, in dB, of decoded images against the originals, both in [-1, 1]."""
    error = (decoded.clamp(-1, 1) - images.to(decoded)).square().mean().clamp_min(1e-10)
    return float(10 * torch.log10(4 / error))


@torch.no_grad()
def is_poor(model: Inpainter, sampler: CropSampler) -> bool:
    """True, with a warning, if the autoencoder reproduces random crops so badly that results will look wrong."""
    images = sampler.draw_batch(JUDGED_CROPS).images
    reached_db = psnr_db(model.decode(model.encode(images)), images)
    if reached_db >= POOR_DB:
        return False
    logger.warning("the model's autoencoder shows these images at %.1f dB only: colours and textures that it does not know", reached_db)
    return True


def decoder_modules(model: Inpainter) -> dict[str, nn.Module]:
    """Everything from the latents to the image, with gradients."""
    parts = {name: getattr(model.vae, name, None) for name in ("decoder", "post_quant_conv")}
    return {f"vae_{name}": part.requires_grad_(True) for name, part in parts.items() if part is not None}


def decoder_loss(model: Inpainter, latents: Tensor, images: Tensor, generator: torch.Generator, texture_weight: float = 0.0) -> Tensor:
    """The ``reconstruction_loss`` of one window of a few crops.

    Args:
        model: its encoder made the latents.
        latents: (B, 4, h, w), scaled.
        images: (B, 3, h * f, w * f) in [-1, 1], the crops.
        generator: places the window.
        texture_weight: see ``reconstruction_loss``.
    """
    latents, images = latents[:DECODED_CROPS], images[:DECODED_CROPS]
    side = max(latents.shape[-1] // WINDOW_SHARE, 1)
    top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in latents.shape[-2:])
    f = model.factor
    window = images[..., top * f : (top + side) * f, left * f : (left + side) * f]
    decoded = model.decode(latents[..., top : top + side, left : left + side])
    return reconstruction_loss(decoded, window.to(decoded), texture_weight)
