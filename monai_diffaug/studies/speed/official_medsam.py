"""MedSAM's published inference script, slice by slice, in floating point: the rival of this package's MedSAM."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.errors import MissingExtraError
from monai_diffaug.models.medsam import box_coverage

__all__ = ["official_masks"]


@torch.no_grad()
def official_masks(sam: Any, slices: Tensor, boxes_xyxy: Tensor, *, box_as_mask: bool = False) -> tuple[Tensor, Tensor]:
    """The steps of ``MedSAM_Inference.py`` for each slice: resize, min-max, encoder, box prompt, decoder, threshold.

    The script stores the resized image in 8 bit; here it stays in floating point, so that results can be compared.

    Args:
        sam: a Sam of ``segment_anything`` with its own attention.
        slices: (S, 1, h, w), any unit.
        boxes_xyxy: (S, 4) in pixels of the slices.
        box_as_mask: the embedded model's prompt.

    Returns:
        Masks (S, h, w) bool and the embeddings (S, E, g, g).

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    try:
        from skimage.transform import resize
    except ImportError as error:
        raise MissingExtraError(f"the published script resizes by scikit-image ({error}): pip install monai_diffaug[eval]") from error

    size, device = sam.image_encoder.img_size, sam.mask_decoder.iou_token.weight.device
    height, width = slices.shape[-2:]
    masks, embeddings = [], []
    for picture, box in zip(slices, boxes_xyxy, strict=True):
        rgb = np.repeat(picture[0].numpy().astype(np.float64)[..., None], 3, -1)
        resized = resize(rgb, (size, size), order=3, preserve_range=True, anti_aliasing=True)
        resized = (resized - resized.min()) / np.clip(resized.max() - resized.min(), 1e-8, None)
        pixels = torch.tensor(resized).float().permute(2, 0, 1)[None].to(device)
        embedding = sam.image_encoder(pixels)
        scaled = (box / torch.tensor([width, height, width, height]) * size)[None].to(device)
        filled = box_coverage(scaled, size, sam.prompt_encoder.mask_input_size[0]) if box_as_mask else None
        sparse, dense = sam.prompt_encoder(points=None, boxes=scaled[:, None], masks=filled)
        logits, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        probability = F.interpolate(torch.sigmoid(logits), size=(height, width), mode="bilinear", align_corners=False)
        masks.append(probability[0, 0] > 0.5)
        embeddings.append(embedding[0])
    return torch.stack(masks), torch.stack(embeddings)
