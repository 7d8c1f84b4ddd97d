"""Where normal tissue is: not the black frame around a scan, not on or beside a finding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["normal_tissue"]

FRAME_LEVEL = 8 / 255  # mean brightness of a neighbourhood that still is the black frame
NEIGHBOURHOOD_PX = 9
MARGIN_PX = 4  # around a finding


def normal_tissue(brightness: NDArray[Any], label: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W) bool.

    Args:
        brightness: (H, W) in [0, 1], of colour images the brightest channel.
        label: (H, W), non-zero on findings.
    """
    from scipy.ndimage import binary_dilation, uniform_filter

    bright = uniform_filter(brightness.astype(np.float32), NEIGHBOURHOOD_PX) > FRAME_LEVEL
    tissue: NDArray[np.bool_] = bright & ~binary_dilation(label > 0, iterations=MARGIN_PX)
    return tissue
