"""Square regions of interest around a mask: small lesions are zoomed, large slices need not be repainted whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Extent", "Roi", "crop", "extent_of", "paste", "resize", "roi_around", "roi_around_extent", "square_from"]

NATIVE_RANGE = (0.8, 1.1)


@dataclass(frozen=True)
class Roi:
    """A square of a slice in pixels; it may reach over the image's border."""

    top: int
    left: int
    side: int


class Extent(NamedTuple):
    """First and last row and column of a mask."""

    top: int
    bottom: int
    left: int
    right: int


def extent_of(mask: Tensor) -> Extent:
    """Of the non-zero pixels of (h, w).

    Raises:
        ValueError: empty mask.
    """
    rows, columns = (mask != 0).any(1).nonzero().flatten(), (mask != 0).any(0).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("a region of interest needs a mask with at least one non-zero pixel")
    return Extent(int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))


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
    return roi_around_extent(extent_of(mask), (mask.shape[0], mask.shape[1]), size, context, min_side, least_side=least_side)


def roi_around_extent(
    extent: Extent,
    size_hw: tuple[int, int],
    size: int,
    context: float = 2.0,
    min_side: int = 32,
    *,
    least_side: Callable[[int], float] | None = None,
) -> Roi:
    """``roi_around`` for a mask of a given extent on an image of ``size_hw``."""
    top, bottom, left, right = extent
    longer = max(bottom - top, right - left) + 1
    needed = longer if least_side is None else math.ceil(least_side(longer))
    side = max(round(context * longer), min_side, needed)
    if NATIVE_RANGE[0] * size <= side <= NATIVE_RANGE[1] * size and longer < size and needed <= size:
        side = size
    side = max(min(side, max(size_hw)), longer)
    return Roi(_start(top, bottom, side, size_hw[0]), _start(left, right, side, size_hw[1]), side)


def _start(first: int, last: int, side: int, length: int) -> int:
    """Centre the span on the mask, then shift it into the image where it fits."""
    start = (first + last + 1 - side) // 2
    return min(max(start, 0), length - side) if side <= length else (length - side) // 2


def _span(start: int, side: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(start, start + side, device=device).clamp(0, length - 1)


def crop(image: Tensor, roi: Roi, size: int) -> Tensor:
    """(C, h, w) -> (C, size, size); beyond the border the border's pixels repeat. A side equal to size is copied."""
    return resize(square_from(image, roi), size)


def square_from(image: Tensor, roi: Roi) -> Tensor:
    """(C, h, w) -> (C, side, side), the pixels of the square as they are; beyond the border the border's repeat."""
    height, width = image.shape[-2:]
    rows, columns = _span(roi.top, roi.side, height, image.device), _span(roi.left, roi.side, width, image.device)
    return image.index_select(-2, rows).index_select(-1, columns)


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
