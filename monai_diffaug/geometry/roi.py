"""Square regions of interest around a mask: small lesions are enlarged, and large slices are not repainted as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RESAMPLINGS", "Extent", "Roi", "crop", "extent_of", "paste", "resize", "roi_around", "roi_around_extent", "square_from"]

RESAMPLINGS = ("bilinear", "bicubic")
NATIVE_RANGE = (0.8, 1.1)  # sides in this range of the model's size become the model's size, so that nothing is resampled


@dataclass(frozen=True)
class Roi:
    """A square of a slice in pixels; it may extend beyond the image's border."""

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
    """Extent of the non-zero pixels of (h, w).

    Raises:
        ValueError: empty mask.

    >>> extent_of(torch.eye(4)[:, :3])
    Extent(top=0, bottom=2, left=0, right=2)
    """
    rows, columns = (mask != 0).any(1).nonzero().flatten(), (mask != 0).any(0).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("a region of interest needs a mask with at least one non-zero pixel")
    return Extent(int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))


def roi_around(
    mask: Tensor,
    size: int,
    context: float = 2.0,
    min_side: int = 32,
    *,
    least_side: Callable[[int], float] | None = None,
    least_context: float | None = None,
) -> Roi:
    """The square around a mask that is the model's input.

    Args:
        mask: (h, w), non-zero means repaint, not empty.
        size: the model's image size in pixels; a side close to it becomes equal to it, so that nothing is resampled.
        context: side of the square as a multiple of the mask's longer extent.
        min_side: smallest side in pixels.
        least_side: longer extent of the mask in pixels -> smallest side, if it needs more than ``context``; the side is never longer
            than the image's longer side.
        least_context: if the side exceeds ``size``, it becomes the larger of ``size`` and this multiple of the mask's longer extent, so
            that less of the texture is lost by resampling; None keeps ``context``.

    Raises:
        ValueError: empty mask.

    >>> mask = torch.zeros(100, 100)
    >>> mask[40:60, 40:50] = 1
    >>> roi_around(mask, size=64)
    Roi(top=30, left=25, side=40)
    """
    return roi_around_extent(
        extent_of(mask), (mask.shape[0], mask.shape[1]), size, context, min_side, least_side=least_side, least_context=least_context
    )


def roi_around_extent(
    extent: Extent,
    size_hw: tuple[int, int],
    size: int,
    context: float = 2.0,
    min_side: int = 32,
    *,
    least_side: Callable[[int], float] | None = None,
    least_context: float | None = None,
) -> Roi:
    """``roi_around`` from the extent of the mask and the image's size in pixels (height, width)."""
    top, bottom, left, right = extent
    longer = max(bottom - top, right - left) + 1
    needed = longer if least_side is None else math.ceil(least_side(longer))
    side = max(round(context * longer), min_side, needed)
    if least_context is not None and side > size:
        side = max(round(min(least_context, context) * longer), size, needed)
    if NATIVE_RANGE[0] * size <= side <= NATIVE_RANGE[1] * size and longer < size and needed <= size:
        side = size
    side = max(min(side, max(size_hw)), longer)
    return Roi(_start(top, bottom, side, size_hw[0]), _start(left, right, side, size_hw[1]), side)


def _start(first: int, last: int, side: int, length: int) -> int:
    """Start of a span centred on the mask; shifted into the image if it is not longer than it."""
    start = (first + last + 1 - side) // 2
    return min(max(start, 0), length - side) if side <= length else (length - side) // 2


def _span(start: int, side: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(start, start + side, device=device).clamp(0, length - 1)


def crop(image: Tensor, roi: Roi, size: int) -> Tensor:
    """(C, h, w) -> (C, size, size), border pixels repeated beyond the border; not resampled if the side equals ``size``.

    >>> crop(torch.arange(4.0).view(1, 2, 2), Roi(-1, 0, 2), 2).tolist()
    [[[0.0, 1.0], [0.0, 1.0]]]
    """
    return resize(square_from(image, roi), size)


def square_from(image: Tensor, roi: Roi) -> Tensor:
    """(C, h, w) -> (C, side, side), not resampled; border pixels are repeated beyond the border."""
    height, width = image.shape[-2:]
    rows, columns = _span(roi.top, roi.side, height, image.device), _span(roi.left, roi.side, width, image.device)
    return image.index_select(-2, rows).index_select(-1, columns)


def resize(square: Tensor, size: int, resample: str = "bilinear") -> Tensor:
    """(C, n, n) -> (C, size, size), antialiased; unchanged if n equals ``size``.

    Args:
        square: pixels, in any unit.
        size: new side in pixels.
        resample: "bilinear", or "bicubic": keeps more of the fine texture; clamped to the range of ``square``, which it would overshoot.

    >>> stripes = (torch.arange(16.0) // 2 % 2).expand(1, 16, 16)
    >>> smooth, sharp = (resize(resize(stripes, 24, mode), 16, mode) for mode in RESAMPLINGS)
    >>> bool(smooth.std() < sharp.std() < stripes.std()), sharp.min().item(), sharp.max().item()
    (True, 0.0, 1.0)
    """
    if square.shape[-1] == size:
        return square
    resized: Tensor = F.interpolate(square[None], (size, size), mode=resample, antialias=True, align_corners=False)[0]
    return resized if resample == "bilinear" else resized.clamp(square.min(), square.max())


def paste(canvas: Tensor, patch: Tensor, roi: Roi, resample: str = "bilinear") -> Tensor:
    """A copy of ``canvas`` (C, h, w) with ``patch`` (C, size, size) resized into the square, see ``resize``.

    >>> paste(torch.zeros(1, 2, 3), torch.ones(1, 2, 2), Roi(1, 1, 2)).tolist()
    [[[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]]
    """
    height, width = canvas.shape[-2:]
    top, left = max(roi.top, 0), max(roi.left, 0)
    bottom, right = min(roi.top + roi.side, height), min(roi.left + roi.side, width)
    native = resize(patch, roi.side, resample)
    result = canvas.clone()
    result[..., top:bottom, left:right] = native[..., top - roi.top : bottom - roi.top, left - roi.left : right - roi.left].to(canvas)
    return result
