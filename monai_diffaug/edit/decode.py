"""Decode: pictures from the latents of candidates, checked and put back into their volumes."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from monai_diffaug.edit.acquisition_noise import add_acquisition_noise
from monai_diffaug.edit.denoise import Candidate, without_autocast
from monai_diffaug.edit.joined_slices import join_slices
from monai_diffaug.edit.options import InpaintOptions, RepaintSettings
from monai_diffaug.edit.slice_batches import batch_sizes, in_batches
from monai_diffaug.edit.stack import put_back
from monai_diffaug.models.inpainter import Inpainter

__all__ = ["Outcome", "decode"]

CONSTANT = 1e-6  # of the model's range [-1, 1]


class Outcome(NamedTuple):
    """The result of one request.

    Attributes:
        volume: (C, H, W[, D]) the repainted volume, or None when there is no edit.
        n_slices: number of repainted slices.
        reason: why there is no edit, else empty.
    """

    volume: Tensor | None
    n_slices: int
    reason: str


@torch.no_grad()
def decode(model: Inpainter, candidates: list[Candidate], settings: RepaintSettings) -> list[Outcome]:
    """Decode candidates and put their pictures back into the volumes.

    Args:
        model: the inpainter that sampled them.
        candidates: all that ``denoise`` returned, or some of them.
        settings: options of the edit.

    Raises:
        torch.OutOfMemoryError: a single slice does not fit into memory.
    """
    pictures: dict[int, Tensor] = {}
    sampled = [(i, candidate) for i, candidate in enumerate(candidates) if candidate.patches]
    for _, group in groupby(sampled, key=lambda pair: pair[1].latents.shape[-1]):
        same_size = list(group)
        latents = torch.cat([candidate.latents for _, candidate in same_size])
        side_px = same_size[0][1].patches[0].image.shape[-1]
        _, vae_batch = batch_sizes(model, side_px, settings.guided, settings.options.run.slice_batch_size)
        with without_autocast(model):
            decoded = in_batches(lambda part, latents=latents: model.decode(latents[part]), len(latents), vae_batch)  # type: ignore[misc]
        parts = decoded.split([len(candidate.patches) for _, candidate in same_size])
        pictures.update((i, part) for (i, _), part in zip(same_size, parts, strict=True))
    return [
        _assemble(candidate, pictures[i], settings.options) if candidate.patches else Outcome(None, 0, "empty mask")
        for i, candidate in enumerate(candidates)
    ]


def _assemble(candidate: Candidate, pictures: Tensor, options: InpaintOptions) -> Outcome:
    """The volume with its pictures (P, 3, size, size) put back."""
    if not bool(torch.isfinite(pictures).all()):
        return Outcome(None, 0, "the model returned non-finite values")
    spread = pictures.flatten(1).amax(1) - pictures.flatten(1).amin(1)
    if bool((spread < CONSTANT).any()):
        return Outcome(None, 0, "the model returned a constant picture")
    volume = put_back(candidate.stack, candidate.patches, pictures, options.region.resample)
    if options.joined_mm > 0:
        volume = join_slices(candidate.stack, candidate.patches, volume, options.joined_mm)
    if options.noise.acquisition:
        volume = add_acquisition_noise(candidate.stack, candidate.patches, volume)
    return Outcome(volume, candidate.n_slices, "")
