"""A ring of encoded crops: the VAE's work is done once a crop, each crop trains several steps, old ones give way to new ones."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffaug.finetune.crops import SliceCropSampler
from monai_diffaug.models.inpainter import Inpainter

__all__ = ["LatentRing"]

ENCODE_BATCH = 8


class LatentRing:
    """Latents of random crops.

    Args:
        model: its VAE encodes.
        sampler: where the crops come from.
        first: crops encoded before the first batch.
        capacity: crops kept at most.
        renewal: crops encoded for each batch, on average.
    """

    def __init__(self, model: Inpainter, sampler: SliceCropSampler, first: int = 64, capacity: int = 512, renewal: float = 2.0) -> None:
        self.model, self.sampler = model, sampler
        self.capacity, self.renewal = capacity, renewal
        self.captions: list[str] = []
        self._latents: list[Tensor] = []
        self._masked: list[Tensor] = []
        self._mask: list[Tensor] = []
        self._oldest, self._owed = 0, 0.0
        self._add(first)

    @torch.no_grad()
    def _add(self, count: int) -> None:
        for start in range(0, count, ENCODE_BATCH):
            n = min(ENCODE_BATCH, count - start)
            image, mask, captions = self.sampler.draw_batch(n)
            pictures = torch.cat([image, image * (mask < 0.5)]) if self.model.takes_mask else image
            latents = self.model.encode(pictures)
            coarse = self.model.latent_mask(mask)
            for i in range(n):
                masked = latents[n + i] if self.model.takes_mask else latents[i]
                self._put(latents[i], masked, coarse[i], captions[i])

    def _put(self, latents: Tensor, masked: Tensor, mask: Tensor, caption: str) -> None:
        rows: list[list[Tensor]] = [self._latents, self._masked, self._mask]
        if len(self.captions) < self.capacity:
            for row, value in zip(rows, (latents, masked, mask), strict=True):
                row.append(value)
            self.captions.append(caption)
            return
        for row, value in zip(rows, (latents, masked, mask), strict=True):
            row[self._oldest] = value
        self.captions[self._oldest] = caption
        self._oldest = (self._oldest + 1) % self.capacity

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """(latents, mask, masked latents, captions) of ``size`` crops of the ring, picked by the sampler's generator."""
        self._owed += self.renewal
        if self._owed >= ENCODE_BATCH:
            self._add(ENCODE_BATCH)
            self._owed -= ENCODE_BATCH
        picks = self.sampler.rng.randint(len(self.captions), size=size)
        latents, mask, masked = (torch.stack([row[i] for i in picks]) for row in (self._latents, self._mask, self._masked))
        return latents, mask, masked, [self.captions[i] for i in picks]
