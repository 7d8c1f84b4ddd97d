"""Put back the fine detail that the autoencoder loses: an edit at partial noise then changes an image only by what the sampler changed."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from monai_diffaug.edit.denoise import Candidate, without_autocast
from monai_diffaug.edit.options import RepaintSettings
from monai_diffaug.edit.slice_batches import batch_sizes, in_batches
from monai_diffaug.edit.stack import put_back
from monai_diffaug.models.inpainter import Inpainter

__all__ = ["with_detail"]


@torch.no_grad()
def with_detail(model: Inpainter, candidate: Candidate, repainted: Tensor, settings: RepaintSettings) -> Tensor:
    """image + (repainted - what the autoencoder alone makes of the image), in the type of the image.

    Both differences vanish outside the soft mask, so voxels there stay bit-identical. At a strength near 0 the result is the image.

    Args:
        model: the inpainter of the edit.
        candidate: its patches; of the image before the edit.
        repainted: (C, H, W[, D]) the edited volume.
        settings: options of the edit.
    """
    through_vae: dict[int, Tensor] = {}
    patches, resample = list(enumerate(candidate.patches)), settings.options.region.resample
    for side_px, group in groupby(patches, key=lambda pair: pair[1].image.shape[-1]):
        same_size = list(group)
        images = torch.stack([patch.image for _, patch in same_size]).to(model.device)
        _, vae_batch = batch_sizes(model, side_px, settings.guided, settings.options.run.slice_batch_size)
        with without_autocast(model):
            pictures = in_batches(lambda part, images=images: model.decode(model.encode(images[part])), len(images), vae_batch)  # type: ignore[misc]
        through_vae.update((i, picture) for (i, _), picture in zip(same_size, pictures, strict=True))
    decoded = put_back(candidate.stack, candidate.patches, torch.stack([through_vae[i] for i, _ in patches]), resample)
    image = candidate.stack.volume
    exact = torch.float64 if image.dtype in (torch.float64, torch.int64, torch.int32) else torch.float32
    result = image.to(exact) + (repainted.to(exact) - decoded.to(exact))
    if image.dtype.is_floating_point:
        return torch.where(repainted == decoded, image, result.to(image.dtype))
    limits = torch.iinfo(image.dtype)
    return result.clamp(limits.min, limits.max).to(image.dtype)
