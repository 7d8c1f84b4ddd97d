"""Square regions of interest around a mask: small lesions are zoomed, large slices need not be repainted whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Roi", "crop", "paste", "roi_around"]

NATIVE_RANGE = (0.8, 1.1)


@dataclass(frozen=True)
class Roi:
    """A square of a slice in pixels; it may reach over the image's border."""

    top: int
    left: int
    side: int


def roi_around(
    mask: Tensor, size: int, context: float = 2.0, min_side: int = 32, *, least_side: Callable[[int], float] | None = None
) -> Roi:
    """The square around a mask that the model shall see.

    Args:
        mask: (h, w), non-zero where to repaint, not empty.
        size: the model's image size in pixels; a side close to it becomes exactly it, so nothing is resampled.
        context: side of the square as a multiple of the mask's longer extent.
        min_side: smallest side in pixels; smaller lesions are zoomed to it.
        least_side: smallest side for a mask of a given extent, where more than ``context`` is needed; the image's longer side limits it.

    Raises:
        ValueError: empty mask.
    """
    rows, columns = (mask != 0).any(1).nonzero().flatten(), (mask != 0).any(0).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("roi_around needs a mask with at least one non-zero pixel")
    top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    extent = max(bottom - top, right - left) + 1
    needed = extent if least_side is None else math.ceil(least_side(extent))
    side = max(round(context * extent), min_side, needed)
    if NATIVE_RANGE[0] * size <= side <= NATIVE_RANGE[1] * size and extent < size and needed <= size:
        side = size
    side = max(min(side, max(mask.shape)), extent)
    return Roi(_start(top, bottom, side, mask.shape[0]), _start(left, right, side, mask.shape[1]), side)


def _start(first: int, last: int, side: int, length: int) -> int:
    """Centre the span on the mask, then shift it into the image where it fits."""
    start = (first + last + 1 - side) // 2
    return min(max(start, 0), length - side) if side <= length else (length - side) // 2


def _span(start: int, side: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(start, start + side, device=device).clamp(0, length - 1)


def crop(image: Tensor, roi: Roi, size: int) -> Tensor:
    """(C, h, w) -> (C, size, size); beyond the border the border's pixels repeat. A side equal to size is copied."""
    height, width = image.shape[-2:]
    rows, columns = _span(roi.top, roi.side, height, image.device), _span(roi.left, roi.side, width, image.device)
    return resize(image.index_select(-2, rows).index_select(-1, columns), size)


def resize(square: Tensor, size: int) -> Tensor:
    """(C, n, n) -> (C, size, size), antialiased bilinear; unchanged when it is that size."""
    if square.shape[-1] == size:
        return square
    resized: Tensor = F.interpolate(square[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return resized


def paste(canvas: Tensor, patch: Tensor, roi: Roi) -> Tensor:
    """A copy of (C, h, w) ``canvas`` with (C, size, size) ``patch`` resized into the square."""
    height, width = canvas.shape[-2:]
    top, left = max(roi.top, 0), max(roi.left, 0)
    bottom, right = min(roi.top + roi.side, height), min(roi.left + roi.side, width)
    native = resize(patch, roi.side)
    result = canvas.clone()
    result[..., top:bottom, left:right] = native[..., top - roi.top : bottom - roi.top, left - roi.left : right - roi.left].to(canvas)
    return result
