"""The losses of a semantic controller: distillation of the hidden features, and the diffusion loss of the steered UNet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.semantic_controller import SemanticModel, patch_mask
from monai_diffaug.training.diffusion_loss import EncodedCrops, denoising_loss, encode_crops

__all__ = ["SemanticCrops", "denoising_step", "distillation_loss", "encode_semantic_crops", "semantic_loss"]

CONDITION_DROPOUT = 0.1


class SemanticCrops(NamedTuple):
    """B encoded crops."""

    latents: Tensor  # (B, 4, h, w) scaled latents of the image
    mask: Tensor  # (B, 1, h, w) at latent size
    masked: Tensor  # (B, 4, h, w) scaled latents of the masked image
    visible: Tensor  # (B, P + 1, E) patch features of the masked image and, last, its global feature
    whole: Tensor  # (B, P + 1, E) likewise of the unmasked image
    hidden: Tensor  # (B, P, 1) in [0, 1], how much of each patch the mask hides
    captions: list[str]


@torch.no_grad()
def encode_semantic_crops(inpainter: Inpainter, model: SemanticModel, images: Tensor, masks: Tensor, captions: list[str]) -> SemanticCrops:
    """Encode crops (B, 3, s, s) in [-1, 1] with masks (B, 1, s, s) in {0, 1}."""
    patches, pooled = model.encoder(torch.cat([images, images * (masks < 0.5)]))
    whole, visible = torch.cat([patches, pooled[:, None]], dim=1).chunk(2)
    encoded = encode_crops(inpainter, images, masks)
    return SemanticCrops(*encoded, visible, whole, patch_mask(masks.to(encoded.mask), model.config.grid), captions)


def distillation_loss(predicted: Tensor, pooled: Tensor, whole: Tensor, hidden: Tensor) -> Tensor:
    """sum_p m_p |f_p - g_p|^2 / (sum_p m_p + 1) + |f_global - g_global|^2, norms as means over E; mean of the batch.

    The distillation loss of MedSoft-Diffusion (2025): f are predicted, g real features, m is 1 on hidden patches.

    Args:
        predicted: (B, P, E) predicted patch features.
        pooled: (B, E) predicted global feature.
        whole: (B, P + 1, E) features of the unmasked image, the global one last.
        hidden: (B, P, 1) in [0, 1].
    """
    of_patch = (predicted - whole[:, :-1]).square().mean(dim=2) * hidden[..., 0]
    patches = of_patch.sum(dim=1) / (hidden.sum(dim=(1, 2)) + 1)
    return (patches + (pooled - whole[:, -1]).square().mean(dim=1)).mean()


def semantic_loss(inpainter: Inpainter, model: SemanticModel, crops: SemanticCrops, *, distils: bool, generator: torch.Generator) -> Tensor:
    """The distillation loss; in the second phase plus the diffusion loss, with a tenth of the conditions dropped.

    The diffusion loss alone lets the predicted features drift from the real ones: after 25 minutes of it they were twice as far from
    them as a constant is (``monai-diffaug evaluate semantic``).

    Args:
        inpainter: frozen.
        model: in training.
        crops: on the inpainter's device.
        distils: True in the first phase.
        generator: of the draws of the second phase, on the CPU.
    """
    with torch.no_grad():
        text = inpainter.encode_text(crops.captions)
    predicted, pooled = model.parts["controller"](crops.visible[:, :-1], crops.visible[:, -1], text, crops.hidden)
    distillation = distillation_loss(predicted, pooled, crops.whole, crops.hidden)
    if distils:
        return distillation
    is_kept = torch.rand(len(crops.captions), generator=generator) >= CONDITION_DROPOUT
    return denoising_step(inpainter, model, crops, is_kept, generator) + distillation


def denoising_step(inpainter: Inpainter, model: SemanticModel, crops: SemanticCrops, is_kept: Tensor, generator: torch.Generator) -> Tensor:
    """The diffusion loss of a batch; where ``is_kept`` (B,) is False, text and semantic tokens are dropped together."""
    steps = torch.randint(int(inpainter.scheduler.config.num_train_timesteps), (len(is_kept),), generator=generator)
    noise = torch.randn(crops.latents.shape, generator=generator)
    with torch.no_grad():
        text = inpainter.encode_text(crops.captions)
        context = inpainter.encode_text([text if keep else "" for text, keep in zip(crops.captions, is_kept.tolist(), strict=True)])
    tokens = model.tokens_of(crops.visible[:, :-1], crops.visible[:, -1], text, crops.hidden)
    tokens = tokens * is_kept[:, None, None].to(tokens)
    unet = model.unet_of(inpainter.unet)

    def denoise(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        prediction: Tensor = unet(
            latents, timestep, encoder_hidden_states=context, added_cond_kwargs={"image_embeds": [tokens[:, None]]}
        ).sample
        return prediction

    return denoising_loss(inpainter, denoise, EncodedCrops(crops.latents, crops.mask, crops.masked), context, steps, noise)
