"""Normal tissue: neither the black frame around a scan, nor a finding or its neighbourhood."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["normal_tissue", "well_inside", "without_holes"]

FRAME_LEVEL = 8 / 255  # largest mean brightness of a neighbourhood in the black frame
NEIGHBOURHOOD_PX = 9
MARGIN_PX = 4  # around a finding


def normal_tissue(brightness: NDArray[Any], label: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W) bool, True for pixels of normal tissue.

    Args:
        brightness: (H, W) in [0, 1]; the brightest channel of a colour image.
        label: (H, W), non-zero on findings.

    >>> label = np.zeros((30, 30))
    >>> label[15, 15] = 1
    >>> tissue = normal_tissue(np.full((30, 30), 0.5), label)
    >>> bool(tissue[5, 5]), bool(tissue[15, 13])
    (True, False)
    """
    from scipy.ndimage import binary_dilation, uniform_filter

    bright = uniform_filter(brightness.astype(np.float32), NEIGHBOURHOOD_PX) > FRAME_LEVEL
    tissue: NDArray[np.bool_] = bright & ~binary_dilation(label > 0, iterations=MARGIN_PX)
    return tissue


def well_inside(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of (H, W) whose neighbourhood of 9 x 9 pixels is tissue: ``normal_tissue`` reaches 4 pixels into the black frame.

    >>> tissue = np.ones((20, 20), bool)
    >>> tissue[:, 12:] = False
    >>> well_inside(tissue)[10].sum()
    np.int64(8)
    """
    from scipy.ndimage import minimum_filter

    inside: NDArray[np.bool_] = minimum_filter(tissue, NEIGHBOURHOOD_PX, mode="nearest")
    return inside


def without_holes(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A region (H, W) and the pixels whose neighbourhood of 9 x 9 pixels lies mostly in it: the dark speckles of thresholded tissue.

    >>> region = np.ones((20, 20), bool)
    >>> region[:, 12:] = region[10, 5:7] = False
    >>> int(without_holes(region)[10].sum())
    12
    """
    from scipy.ndimage import uniform_filter

    return region | (uniform_filter(region.astype(np.float32), NEIGHBOURHOOD_PX, mode="nearest") > 0.5)
