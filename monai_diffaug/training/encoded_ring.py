"""A ring of encoded crops: the encoders' work is done once a crop, each crop trains several steps, old ones give way to new ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from monai_diffaug.training.slice_crops import SliceCropSampler

__all__ = ["EncodedRing"]

ENCODED_AT_ONCE = 8


class EncodedRing:
    """What frozen networks make of random crops.

    Args:
        sampler: where the crops come from.
        encode: images (n, 3, S, S) in [-1, 1] and masks (n, 1, S, S) -> tensors with n rows each.
        first: crops encoded before the first batch.
        capacity: crops kept at most.
        renewal: crops encoded for each batch, on average.
    """

    def __init__(
        self,
        sampler: SliceCropSampler,
        encode: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        first: int = 64,
        capacity: int = 512,
        renewal: float = 2.0,
    ) -> None:
        self.sampler, self.encode = sampler, encode
        self.capacity, self.renewal = capacity, renewal
        self._crops: list[tuple[tuple[Tensor, ...], str]] = []
        self._oldest, self._owed = 0, 0.0
        for start in range(0, first, ENCODED_AT_ONCE):
            self._add(min(ENCODED_AT_ONCE, first - start))

    def _add(self, count: int) -> None:
        images, masks, captions = self.sampler.draw_batch(count)
        for crop in zip(zip(*self.encode(images, masks), strict=True), captions, strict=True):
            if len(self._crops) < self.capacity:
                self._crops.append(crop)
            else:
                self._crops[self._oldest] = crop
                self._oldest = (self._oldest + 1) % self.capacity

    def batch(self, size: int) -> tuple[tuple[Tensor, ...], list[str]]:
        """What ``encode`` made of ``size`` crops of the ring, and their captions; the sampler's generator picks them."""
        self._owed += self.renewal
        if self._owed >= ENCODED_AT_ONCE:
            self._add(ENCODED_AT_ONCE)
            self._owed -= ENCODED_AT_ONCE
        picked = [self._crops[i] for i in self.sampler.rng.randint(len(self._crops), size=size)]
        return tuple(torch.stack(column) for column in zip(*(tensors for tensors, _ in picked), strict=True)), [text for _, text in picked]
