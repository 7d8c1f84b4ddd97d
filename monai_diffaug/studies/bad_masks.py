"""Masks that are wrong on purpose: moved, elsewhere, too large, too small."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.masks.shapes import borrow_shape, place

__all__ = ["BAD_MASKS", "elsewhere", "grown", "shifted", "shrunk"]

Mask = NDArray[np.bool_]


def shifted(rng: np.random.RandomState, mask: Mask, tissue: Mask) -> Mask | None:
    """The mask moved by its diameter up, down, left or right, next to its old place. None where it would leave the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    top, left = int(rows[0]), int(columns[0])
    steps = [(-height, 0), (height, 0), (0, -width), (0, width)]
    room_y, room_x = range(mask.shape[0] - height + 1), range(mask.shape[1] - width + 1)
    fitting = [(y, x) for y, x in steps if top + y in room_y and left + x in room_x]
    if not fitting:
        return None
    chosen = fitting[rng.randint(len(fitting))]
    moved: Mask = np.roll(mask, chosen, (0, 1))
    return moved


def elsewhere(rng: np.random.RandomState, mask: Mask, tissue: Mask) -> Mask | None:
    """The mask's outline on free tissue of the same image. None where there is no room."""
    return place(rng, borrow_shape(rng, mask, 1.0), tissue)


def grown(rng: np.random.RandomState, mask: Mask, tissue: Mask) -> Mask | None:
    """The mask dilated until its area is at least twice as large."""
    from scipy.ndimage import binary_dilation, generate_binary_structure

    wide, round_element = mask, generate_binary_structure(2, 1)
    while 0 < wide.sum() < min(2 * mask.sum(), mask.size):
        wide = binary_dilation(wide, round_element)
    result: Mask = wide
    return result


def shrunk(rng: np.random.RandomState, mask: Mask, tissue: Mask) -> Mask | None:
    """The half of the mask's pixels that lie deepest inside it."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(mask)
    inside = depth[mask]
    kept: Mask = mask & (depth >= np.quantile(inside, 0.5))
    return kept if kept.any() else None


BAD_MASKS: dict[str, Callable[[np.random.RandomState, Mask, Mask], Mask | None]] = {
    "moved by its diameter": shifted,
    "elsewhere in the image": elsewhere,
    "twice the area": grown,
    "half the area": shrunk,
}
