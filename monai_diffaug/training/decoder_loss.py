"""The decoder of the inpainter's autoencoder: how well it shows the user's images, and its loss where it has to learn them.

The UNet works on latents, so no training of it can show a colour or texture that the decoder does not know. The encoder stays as
it is: the latents keep their meaning, and with it every other network that was trained on them.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.training.embedded.train_vae import reconstruction_loss
from monai_diffaug.training.slice_crops import SliceCropSampler

__all__ = ["POOR_DB", "decoder_loss", "decoder_modules", "is_poor", "round_trip_db"]

logger = logging.getLogger(__name__)

POOR_DB = 28.0  # the embedded autoencoder reaches more than 30 dB on every modality it knows
JUDGED_CROPS = 8
DECODED_CROPS = 4  # a step
WINDOW_SHARE = 2  # windows of half the crop's side are decoded: they cost a quarter and show more crops


@torch.no_grad()
def round_trip_db(model: Inpainter, images: Tensor) -> float:
    """Peak signal-to-noise ratio, in dB, of images (B, 3, S, S) in [-1, 1] that are encoded and decoded."""
    decoded = model.decode(model.encode(images)).clamp(-1, 1)
    error = (decoded - images.to(decoded)).square().mean().clamp_min(1e-10)
    return float(10 * torch.log10(4 / error))


def is_poor(model: Inpainter, sampler: SliceCropSampler) -> bool:
    """Whether the autoencoder shows random crops so badly that results will look wrong; says so."""
    images, _, _ = sampler.draw_batch(JUDGED_CROPS)
    reached_db = round_trip_db(model, images)
    if reached_db >= POOR_DB:
        return False
    logger.warning("the model's autoencoder shows these images at %.1f dB only: colours and textures that it does not know", reached_db)
    return True


def decoder_modules(model: Inpainter) -> dict[str, nn.Module]:
    """What is trained: everything from the latents to the image."""
    names = ("decoder", "post_quant_conv")
    return {f"vae_{name}": getattr(model.vae, name) for name in names if getattr(model.vae, name, None) is not None}


def decoder_loss(model: Inpainter, latents: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
    """The embedded autoencoder's loss on one window of a few crops.

    Args:
        model: its encoder made the latents.
        latents: (B, 4, h, w), scaled.
        images: (B, 3, h * f, w * f) in [-1, 1], what they are of.
        generator: places the window.
    """
    latents, images = latents[:DECODED_CROPS], images[:DECODED_CROPS]
    side = max(latents.shape[-1] // WINDOW_SHARE, 1)
    top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in latents.shape[-2:])
    f = model.factor
    window = images[..., top * f : (top + side) * f, left * f : (left + side) * f]
    decoded = model.decode(latents[..., top : top + side, left : left + side])
    return reconstruction_loss(decoded, window.to(decoded))
