"""Squares of a slice that the model repaints: one around the whole mask, or several around lesions that are far apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.geometry.roi import Extent, Roi, extent_of, roi_around_extent

__all__ = ["Square", "squares_of", "whole_slices"]

AroundExtent = Callable[[Extent], Roi]
MOST_PARTS = 64  # a slice with more connected components has a speckled mask, not several lesions


class Square(NamedTuple):
    """A square of a slice and the part of the mask that is repainted in it.

    Attributes:
        row: index of the slice in its stack.
        roi: the square.
        size: side in pixels after resampling.
        mask: (h, w) of the slice, non-zero means repaint.
        part: number of the lesion, the same in neighbouring slices; 0 if all lesions share one square.
    """

    row: int
    roi: Roi
    size: int
    mask: Tensor
    part: int = 0


def squares_of(
    masks: Tensor,
    rows: Sequence[int],
    size: int,
    context: float = 2.0,
    min_side: int = 32,
    *,
    least_side: Callable[[int], float] | None = None,
    least_context: float | None = None,
) -> list[Square]:
    """Squares around the masks of some slices of a stack, see ``roi_around``.

    If one square would have to be downsampled for the model, lesions that are far apart get separate squares, unless a square would
    contain pixels that are repainted in another one, or the squares together have more pixels than the slice.

    Args:
        masks: (S, 1, h, w), non-zero means repaint.
        rows: indices of the slices with a mask.
        size: the model's image size in pixels.
        context, min_side, least_side, least_context: see ``roi_around``.

    >>> mask = torch.zeros(1, 1, 300, 300)
    >>> mask[..., 10:30, 10:30] = mask[..., 250:270, 250:270] = 1
    >>> [(square.roi.top, square.roi.side, square.part) for square in squares_of(mask, [0], size=64)]
    [(0, 40, 0), (240, 40, 1)]
    """
    size_hw = (masks.shape[-2], masks.shape[-1])

    def around(extent: Extent) -> Roi:
        return roi_around_extent(extent, size_hw, size, context, min_side, least_side=least_side, least_context=least_context)

    whole = {row: around(extent_of(masks[row, 0])) for row in rows}
    if all(roi.side <= size for roi in whole.values()):
        return [Square(row, roi, size, masks[row, 0]) for row, roi in whole.items()]
    parts = _connected(masks[:, 0])
    split = (_split(masks[row, 0], parts[row], row, roi, size, around) for row, roi in whole.items())
    return [square for squares in split for square in squares]


def whole_slices(masks: Tensor, rows: Sequence[int], multiple: int) -> list[Square]:
    """Smallest square around a whole slice, for some slices of (S, 1, h, w); its side is a multiple of ``multiple`` pixels.

    >>> whole_slices(torch.ones(1, 1, 60, 90), [0], 32)[0].roi
    Roi(top=-18, left=-3, side=96)
    """
    height, width = masks.shape[-2:]
    side = -(-max(height, width) // multiple) * multiple
    roi = Roi((height - side) // 2, (width - side) // 2, side)
    return [Square(row, roi, side, masks[row, 0]) for row in rows]


def _connected(masks: Tensor) -> np.ndarray[Any, Any]:
    """(S, h, w) -> number of the 26-connected component of each pixel, from 1 on; 0 outside the mask."""
    from scipy.ndimage import label

    numbers: np.ndarray[Any, Any] = label(masks.detach().cpu().numpy() != 0, np.ones((3, 3, 3)))[0]
    return numbers


def _split(mask: Tensor, parts: np.ndarray[Any, Any], row: int, whole: Roi, size: int, around: AroundExtent) -> list[Square]:
    """The squares of one slice."""
    extents = _extents(parts)
    present = list(extents)
    groups = _grouped(extents, size, around) if whole.side > size and len(present) <= MOST_PARTS else [present]
    if len(groups) == 1 or len(groups) > (whole.side / size) ** 2:
        return [Square(row, whole, size, mask, present[0] - 1)]
    masks = [mask * torch.from_numpy(np.isin(parts, group)).to(mask.device) for group in groups]
    return [Square(row, around(extent_of(part)), size, part, group[0] - 1) for group, part in zip(groups, masks, strict=True)]


def _extents(parts: np.ndarray[Any, Any]) -> dict[int, Extent]:
    """Number of each component in a slice (h, w) -> its rows and columns."""
    from scipy.ndimage import find_objects

    boxes = enumerate(find_objects(parts), start=1)
    return {part: Extent(box[0].start, box[0].stop - 1, box[1].start, box[1].stop - 1) for part, box in boxes if box is not None}


def _grouped(extents: dict[int, Extent], size: int, around: AroundExtent) -> list[list[int]]:
    """Groups of components with one square each: those that fit into a square of the model's size, or whose squares overlap."""
    groups: list[list[int]] = []
    for part in extents:
        fitting = (group for group in groups if around(_union(extents, [*group, part])).side <= size)
        group = next(fitting, None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    while (overlap := _first_overlap(groups, extents, around)) is not None:
        one, other = overlap
        groups[one] = sorted(groups[one] + groups[other])
        del groups[other]
    return groups


def _first_overlap(groups: list[list[int]], extents: dict[int, Extent], around: AroundExtent) -> tuple[int, int] | None:
    """First pair (i, j) where the square of group i overlaps the bounding box of group j; None if there is none."""
    boxes = [_union(extents, group) for group in groups]
    rois = [around(box) for box in boxes]
    for one, other in permutations(range(len(groups)), 2):
        roi, (top, bottom, left, right) = rois[one], boxes[other]
        if roi.top <= bottom and top < roi.top + roi.side and roi.left <= right and left < roi.left + roi.side:
            return one, other
    return None


def _union(extents: dict[int, Extent], parts: list[int]) -> Extent:
    tops, bottoms, lefts, rights = zip(*(extents[part] for part in parts), strict=True)
    return Extent(min(tops), max(bottoms), min(lefts), max(rights))
