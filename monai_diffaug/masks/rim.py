"""The tissue around a lesion: a rim of it, and the intensities there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["rim_of", "rim_statistics"]

LEAST_WIDTH_PX = 3
WIDTH = 0.25  # of the longer side of the mask
GAP_PX = 1  # the edge of a lesion is blurred by a pixel


def rim_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rim (S, h, w) around a mask (S, h, w), in its slices: a quarter of the mask's longer side wide, but not less than 3 pixels.

    >>> mask = np.zeros((1, 20, 20), bool)
    >>> mask[:, 8:12, 8:12] = True
    >>> rim = rim_of(mask)
    >>> int(rim[0, 10].sum()), bool(rim[0, 10, 7]), bool(rim[0, 10, 6])
    (6, False, True)
    """
    from scipy.ndimage import distance_transform_edt

    hits: NDArray[np.bool_] = np.any(mask, axis=0)
    if not hits.any():
        return np.zeros_like(mask)
    longer = max(int(np.ptp(np.flatnonzero(np.any(hits, axis=axis)))) + 1 for axis in (0, 1))
    width = max(LEAST_WIDTH_PX, WIDTH * longer)
    rim = np.zeros_like(mask)
    for index in np.flatnonzero(mask.any((1, 2))):
        distance = distance_transform_edt(~mask[index])
        rim[index] = (distance > GAP_PX) & (distance <= GAP_PX + width)
    return rim


def rim_statistics(pixels: NDArray[Any], rim: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """(mean, standard deviation) of each channel of (C, S, h, w) in a rim (S, h, w); of all pixels where the rim is empty.

    >>> rim_statistics(np.full((1, 1, 4, 4), 7), np.ones((1, 4, 4), bool))
    ((7.0, 0.0),)
    """
    within = rim if rim.any() else np.ones_like(rim)
    return tuple((float(channel[within].mean(dtype=np.float64)), float(channel[within].std(dtype=np.float64))) for channel in pixels)
