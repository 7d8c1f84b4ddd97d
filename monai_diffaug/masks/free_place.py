"""A free place for a lesion of several slices, drawn uniformly or by a likelihood map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["free_place"]

TRIES = 100


def free_place(
    rng: np.random.RandomState,
    shape: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    free: NDArray[np.bool_],
    likelihood: NDArray[np.floating] | None = None,
    least_share: float = 0.95,
) -> tuple[int, int, int] | None:
    """First slice, row and column of a place where the lesion fits; None if none of 100 draws does.

    Args:
        rng: source of the place; the number of draws does not depend on the data.
        shape: (s, h, w) lesion, cropped to its bounding box.
        allowed: (S, H, W), True where the lesion may be; its middle always lies there.
        free: (S, H, W), True where no voxel of the lesion overlaps a label.
        likelihood: (S, H, W) >= 0, of the lesion's middle; None is uniform.
        least_share: of the lesion's voxels that are allowed.

    >>> free = np.zeros((1, 20, 20), bool)
    >>> free[0, 4:7, 10:14] = True
    >>> free_place(np.random.RandomState(0), np.ones((1, 3, 4), bool), free, free)
    (0, 4, 10)
    """
    draws = rng.random_sample(TRIES)
    room = [have - need for have, need in zip(allowed.shape, shape.shape, strict=True)]
    if min(room) < 0:
        return None
    middle = [length // 2 for length in shape.shape]
    inner = tuple(slice(start, start + free_steps + 1) for start, free_steps in zip(middle, room, strict=True))
    weights = allowed[inner].ravel().astype(np.float64)
    if likelihood is not None:
        weights *= likelihood[inner].ravel()
    total = np.cumsum(weights)
    if not total[-1] > 0:
        return None
    for chosen in np.searchsorted(total, draws * total[-1], side="right"):
        start = np.unravel_index(min(int(chosen), len(total) - 1), [steps + 1 for steps in room])
        box = tuple(slice(first, first + length) for first, length in zip(start, shape.shape, strict=True))
        if free[box][shape].all() and allowed[box][shape].mean() >= least_share:
            return int(start[0]), int(start[1]), int(start[2])
    return None
