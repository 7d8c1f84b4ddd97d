"""A ring of encoded crops: each crop is encoded once and trains several steps; new crops replace the oldest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from monai_diffaug.training.crop_sampler import CropBatch, CropSampler

__all__ = ["EncodedRing"]

ENCODED_AT_ONCE = 8
FIRST = 64


class EncodedRing:
    """Random crops, encoded by frozen networks and kept in memory.

    Args:
        sampler: source of the crops.
        encode: makes of a batch of n crops tensors with n rows each.
        first: number of crops encoded before the first batch; default 64.
        capacity: number of crops kept at most.
        renewal: number of crops encoded per batch, on average.
    """

    def __init__(
        self,
        sampler: CropSampler,
        encode: Callable[[CropBatch], tuple[Tensor, ...]],
        first: int | None = None,
        capacity: int = 512,
        renewal: float = 2.0,
    ) -> None:
        self.sampler, self.encode = sampler, encode
        self.capacity, self.renewal = capacity, renewal
        self._rows: list[tuple[tuple[Tensor, ...], str]] = []
        self._oldest, self._due = 0, 0.0
        first = FIRST if first is None else first
        for start in range(0, first, ENCODED_AT_ONCE):
            self._add(min(ENCODED_AT_ONCE, first - start))

    def _add(self, count: int) -> None:
        batch = self.sampler.draw_batch(count)
        for row in zip(zip(*self.encode(batch), strict=True), batch.captions, strict=True):
            if len(self._rows) < self.capacity:
                self._rows.append(row)
            else:
                self._rows[self._oldest] = row
                self._oldest = (self._oldest + 1) % self.capacity

    def batch(self, size: int) -> tuple[tuple[Tensor, ...], list[str]]:
        """Encoded tensors and captions of ``size`` random crops of the ring, drawn by the sampler's generator."""
        self._due += self.renewal
        if self._due >= ENCODED_AT_ONCE:
            self._add(ENCODED_AT_ONCE)
            self._due -= ENCODED_AT_ONCE
        rows = [self._rows[i] for i in self.sampler.rng.randint(len(self._rows), size=size)]
        return tuple(torch.stack(column) for column in zip(*(tensors for tensors, _ in rows), strict=True)), [text for _, text in rows]
