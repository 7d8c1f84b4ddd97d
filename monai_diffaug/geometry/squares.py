"""Which squares of a slice the model sees: one around all that is masked, or several around lesions that lie far apart."""

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
MOST_PARTS = 64  # a mask of more parts in a slice is speckled, not several lesions


class Square(NamedTuple):
    """A square of a slice and what is repainted in it.

    Attributes:
        row: of the slice in its stack.
        roi: where.
        size: pixels a side that it is resampled to.
        mask: (h, w) of the slice, non-zero means repaint.
        part: number of the lesion, the same in neighbouring slices; 0 where all lesions share one square.
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
) -> list[Square]:
    """Squares around the masks of some slices of a stack, see ``roi_around``.

    Where one square would be made smaller for the model, lesions that lie apart get squares of their own, as long as no square shows
    what is repainted in another and the squares are no more work than the slice at its own resolution.

    Args:
        masks: (S, 1, h, w), non-zero means repaint.
        rows: the slices in which there is a mask.
        size: the model's image size in pixels.
        context, min_side, least_side: see ``roi_around``.
    """
    size_hw = (masks.shape[-2], masks.shape[-1])

    def around(extent: Extent) -> Roi:
        return roi_around_extent(extent, size_hw, size, context, min_side, least_side=least_side)

    whole = {row: around(extent_of(masks[row, 0])) for row in rows}
    if all(roi.side <= size for roi in whole.values()):
        return [Square(row, roi, size, masks[row, 0]) for row, roi in whole.items()]
    parts = _connected(masks[:, 0])
    split = (_split(masks[row, 0], parts[row], row, roi, size, around) for row, roi in whole.items())
    return [square for squares in split for square in squares]


def whole_slices(masks: Tensor, rows: Sequence[int], multiple: int) -> list[Square]:
    """Of some slices of a stack (S, 1, h, w) the smallest square that holds all of it, its side a multiple of ``multiple`` pixels."""
    height, width = masks.shape[-2:]
    side = -(-max(height, width) // multiple) * multiple
    roi = Roi((height - side) // 2, (width - side) // 2, side)
    return [Square(row, roi, side, masks[row, 0]) for row in rows]


def _connected(masks: Tensor) -> np.ndarray[Any, Any]:
    """(S, h, w) -> the number of the connected part that a pixel belongs to, from 1 on, 0 outside."""
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
    return [Square(row, around(extent_of(own)), size, own, group[0] - 1) for group, own in zip(groups, masks, strict=True)]


def _extents(parts: np.ndarray[Any, Any]) -> dict[int, Extent]:
    """Part -> its rows and columns, of those in a slice (h, w)."""
    from scipy.ndimage import find_objects

    found = enumerate(find_objects(parts), start=1)
    return {part: Extent(at[0].start, at[0].stop - 1, at[1].start, at[1].stop - 1) for part, at in found if at is not None}


def _grouped(extents: dict[int, Extent], size: int, around: AroundExtent) -> list[list[int]]:
    """Which parts share a square: those that fit into one of the model's size, and those that one would show beside others."""
    groups: list[list[int]] = []
    for part in extents:
        fitting = (group for group in groups if around(_union(extents, [*group, part])).side <= size)
        group = next(fitting, None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    while (shown := _first_shown(groups, extents, around)) is not None:
        one, other = shown
        groups[one] = sorted(groups[one] + groups[other])
        del groups[other]
    return groups


def _first_shown(groups: list[list[int]], extents: dict[int, Extent], around: AroundExtent) -> tuple[int, int] | None:
    """Two groups of which the square of the first reaches into the extent of the second."""
    whole = [_union(extents, group) for group in groups]
    rois = [around(extent) for extent in whole]
    for one, other in permutations(range(len(groups)), 2):
        roi, (top, bottom, left, right) = rois[one], whole[other]
        if roi.top <= bottom and top < roi.top + roi.side and roi.left <= right and left < roi.left + roi.side:
            return one, other
    return None


def _union(extents: dict[int, Extent], parts: list[int]) -> Extent:
    tops, bottoms, lefts, rights = zip(*(extents[part] for part in parts), strict=True)
    return Extent(min(tops), max(bottoms), min(lefts), max(rights))
