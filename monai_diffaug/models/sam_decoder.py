"""SAM's mask decoder for a batch of images: one box and one mask per image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

__all__ = ["decode_boxes"]


def decode_boxes(sam: Sam, embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Result of ``sam.mask_decoder(..., multimask_output=False)`` for each image and its prompt.

    The forward of ``segment_anything`` takes one image and many prompts; here the i-th prompt belongs to the i-th image. Only the
    first of its four masks is computed, the one that it would return.

    Args:
        sam, embeddings, sparse, dense: networks, (B, E, g, g) of the images, (B, T, E) prompt tokens, (B, E, g, g) mask prompts.

    Returns:
        Logits (B, 1, 4g, 4g) and predicted IoU (B, 1).
    """
    decoder = sam.mask_decoder
    count, width, height_g, width_g = embeddings.shape
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None].expand(count, -1, -1)
    positions = sam.prompt_encoder.get_dense_pe().expand(count, -1, -1, -1)
    tokens, image = decoder.transformer(embeddings + dense, positions, torch.cat([outputs, sparse], dim=1))
    upscaled = decoder.output_upscaling(image.transpose(1, 2).view(count, width, height_g, width_g))
    kernel = decoder.output_hypernetworks_mlps[0](tokens[:, 1])
    logits = torch.einsum("bc,bchw->bhw", kernel, upscaled)[:, None]
    return logits, decoder.iou_prediction_head(tokens[:, 0])[:, :1]
