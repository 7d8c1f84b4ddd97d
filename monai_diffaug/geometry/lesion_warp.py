"""Bring a lesion onto another grid: mirror, rotate, scale and bend it, in millimetres; its slices stay in their order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Warp", "WarpedLesion", "warp_lesion"]

CONTROL_POINTS = 5  # per axis of the elastic deformation
TIE_PX = 1e-3  # a boundary halfway between two pixels belongs to the lesion on one side, not on both or none
SHRINKS = 1.05  # a step between voxels larger than this is smoothed before it is sampled
Spacing = tuple[float, float, float]


class Warp(NamedTuple):
    """What is done to a lesion in the slices; the same in all of them.

    Attributes:
        mirror: (rows, columns), True flips them.
        angle_deg: rotation in the plane of the slices.
        scale: factor of its size in mm, in all directions.
        bend: (2, n, n) shifts of control points along rows and columns, as a share of the lesion's longer side.
    """

    mirror: tuple[bool, bool] = (False, False)
    angle_deg: float = 0.0
    scale: float = 1.0
    bend: NDArray[np.float64] | None = None


class WarpedLesion(NamedTuple):
    """A lesion on the target's grid, with some of its surround.

    Attributes:
        pixels: (C, S, h, w) float32.
        mask: (S, h, w) bool, the lesion.
        other: (S, h, w) bool, anything else that is labelled, and places beyond the donor's crop.
    """

    pixels: NDArray[np.float32]
    mask: NDArray[np.bool_]
    other: NDArray[np.bool_]


def warp_lesion(
    pixels: NDArray[Any],
    mask: NDArray[np.uint8],
    spacing_mm: Spacing,
    target_mm: Spacing,
    warp: Warp,
    margin_px: int = 0,
    *,
    one_slice: bool = False,
) -> WarpedLesion:
    """Resample a lesion to the spacing of another image.

    Args:
        pixels: (S, C, h, w) slices of the lesion's image.
        mask: (S, h, w), 1 the lesion, 2 anything else that is labelled.
        spacing_mm: distances of slices, rows and columns of the lesion's image.
        target_mm: the same of the other image.
        warp: mirroring, rotation, scale and deformation.
        margin_px: surround on each side of the result, in pixels of the target.
        one_slice: the target is a 2-D image: the result has one slice, the middle one.

    >>> mask = np.zeros((4, 20, 20), np.uint8)
    >>> mask[:, 5:15, 8:12] = 1
    >>> moved = warp_lesion(np.zeros((4, 1, 20, 20)), mask, (5.0, 1.0, 1.0), (2.5, 0.5, 1.0), Warp())
    >>> moved.mask.shape  # twice the slices, twice the rows
    (8, 20, 4)
    """
    from scipy.ndimage import map_coordinates

    lesion = mask == 1
    indices, reach_mm, longer_mm = _centre(lesion, spacing_mm)
    bend_mm = 0.0 if warp.bend is None else float(np.abs(warp.bend).max()) * longer_mm
    count = 1 if one_slice else max(1, round(len(mask) * spacing_mm[0] * warp.scale / target_mm[0]))
    half = [int(np.ceil((reach_mm + bend_mm) * warp.scale / mm)) + margin_px + 1 for mm in target_mm[1:]]
    slices = (np.arange(count) - (count - 1) / 2) * target_mm[0] / warp.scale / spacing_mm[0] + (len(mask) - 1) / 2
    rows, columns = np.meshgrid(*(np.arange(-n, n + 1) * mm / warp.scale for n, mm in zip(half, target_mm[1:], strict=True)), indexing="ij")
    if warp.bend is not None:
        shifts = _displacements(warp.bend, rows.shape) * longer_mm
        rows, columns = rows + shifts[0], columns + shifts[1]
    angle = np.deg2rad(warp.angle_deg)
    rows, columns = np.cos(angle) * rows - np.sin(angle) * columns, np.sin(angle) * rows + np.cos(angle) * columns
    sides = [-each if flip else each for each, flip in zip((rows, columns), warp.mirror, strict=True)]
    at = [side / mm + index for side, mm, index in zip(sides, spacing_mm[1:], indices, strict=True)]
    grid = np.stack(
        [np.broadcast_to(slices[:, None, None], (count, *rows.shape)), *(np.broadcast_to(each, (count, *rows.shape)) for each in at)]
    )
    grid[0] = grid[0].clip(0, len(mask) - 1)
    steps = [target / warp.scale / mm for target, mm in zip(target_mm, spacing_mm, strict=True)]
    channels = [_sampled(_smoothed(channel.astype(np.float32), steps), grid) for channel in pixels.swapaxes(0, 1)]
    offset = np.array([0, TIE_PX, TIE_PX])[:, None, None, None]
    share = map_coordinates(_smoothed(lesion.astype(np.float32), steps), grid + offset, order=1, mode="nearest")
    beyond = ((grid[1:] < -0.5) | (grid[1:] > np.array(mask.shape[1:])[:, None, None, None] - 0.5)).any(0)
    inside = (share > min(0.5, 0.5 * float(share.max()))) & ~beyond
    other = (map_coordinates((mask > 1).astype(np.float32), grid, order=1, mode="nearest") > 0) & ~inside | beyond
    return _cropped(np.stack(channels), inside, other, margin_px)


def _centre(lesion: NDArray[np.bool_], spacing_mm: Spacing) -> tuple[tuple[float, float], float, float]:
    """Middle of a lesion's bounding box, in whole pixels; its largest distance from there, and its longer side, in mm."""
    rows, columns = np.nonzero(lesion.any(0))
    middle = ((rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2)  # whole pixels: mirroring alone resamples nothing
    reach = np.hypot((rows - middle[0]) * spacing_mm[1], (columns - middle[1]) * spacing_mm[2]).max()
    longer = max((np.ptp(rows) + 1) * spacing_mm[1], (np.ptp(columns) + 1) * spacing_mm[2])
    return (float(middle[0]), float(middle[1])), float(reach), float(longer)


def _displacements(bend: NDArray[np.float64], size_hw: tuple[int, ...]) -> NDArray[np.float64]:
    """Shifts (2, h, w) from those of control points (2, n, n): a cubic spline, as of an elastic deformation."""
    from scipy.ndimage import zoom

    return np.stack([zoom(each, [length / n for length, n in zip(size_hw, each.shape, strict=True)], order=3) for each in bend])


def _smoothed(volume: NDArray[np.float32], steps: list[float]) -> NDArray[np.float32]:
    """A volume (S, h, w) without detail that a coarser grid cannot hold."""
    from scipy.ndimage import gaussian_filter

    widths = [max(step - 1, 0) / 2 if step > SHRINKS else 0.0 for step in steps]
    smooth: NDArray[np.float32] = gaussian_filter(volume, widths, mode="nearest") if any(widths) else volume
    return smooth


def _sampled(volume: NDArray[np.float32], grid: NDArray[np.float64]) -> NDArray[np.float32]:
    """A volume at the points of a grid, by cubic splines that do not leave its range."""
    from scipy.ndimage import map_coordinates

    values: NDArray[np.float32] = map_coordinates(volume, grid, order=3, mode="nearest").clip(volume.min(), volume.max())
    return values


def _cropped(pixels: NDArray[np.float32], mask: NDArray[np.bool_], other: NDArray[np.bool_], margin_px: int) -> WarpedLesion:
    """The slices with a lesion, and the rows and columns around it."""
    slices, rows, columns = (np.flatnonzero(mask.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    box = (
        slice(slices[0], slices[-1] + 1),
        slice(max(rows[0] - margin_px, 0), rows[-1] + 1 + margin_px),
        slice(max(columns[0] - margin_px, 0), columns[-1] + 1 + margin_px),
    )
    return WarpedLesion(pixels[:, *box], mask[box], other[box])
