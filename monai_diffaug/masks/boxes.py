"""Bounding boxes of 2-D masks: (x0, y0, x1, y1) in pixels of the slice, x along its last axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MEDSAM_SIZE_PX", "Box", "box_around", "connected_components", "enlarged"]

Box = tuple[float, float, float, float]
MEDSAM_SIZE_PX = 1024  # MedSAM jitters its boxes by 0-20 px on slices of this size


def box_around(mask_hw: Tensor) -> Box:
    """First and last column and row of the non-zero pixels, as in MedSAM's data loader.

    Raises:
        ValueError: the mask is empty.

    >>> box_around(torch.tensor([[0, 0, 0], [0, 1, 1]]))
    (1.0, 1.0, 2.0, 1.0)
    """
    rows, columns = torch.nonzero(mask_hw.any(1)).flatten(), torch.nonzero(mask_hw.any(0)).flatten()
    if len(rows) == 0:
        raise ValueError("an empty mask has no bounding box")
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def connected_components(mask_hw: Tensor) -> list[Tensor]:
    """8-connected components of a mask (h, w), each (h, w) bool, the largest first.

    Each pixel's label spreads by a 3x3 maximum; labels are pixel numbers, so a label is also replaced by the label of that pixel
    (pointer jumping), which makes long thin components fast.

    >>> [int(part.sum()) for part in connected_components(torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 1]]))]
    [2, 1]
    """
    if not mask_hw.any():
        return []
    x0, y0, x1, y1 = (int(v) for v in box_around(mask_hw))
    inside = mask_hw[y0 : y1 + 1, x0 : x1 + 1] != 0
    height, width = inside.shape
    counting = torch.float32 if height * width < 2**24 else torch.float64  # exact for every pixel's number
    label = (torch.arange(1, height * width + 1, device=inside.device).view(height, width) * inside).to(counting)
    while True:
        spread = F.max_pool2d(label[None, None], 3, 1, 1)[0, 0] * inside
        chain = torch.cat([spread.new_zeros(1), spread.flatten()])
        spread = chain[spread.long()]
        if torch.equal(spread, label):
            break
        label = spread
    values, counts = torch.unique(label[inside], return_counts=True)
    parts = []
    for i in torch.argsort(counts, descending=True, stable=True):
        part = torch.zeros_like(mask_hw, dtype=torch.bool)
        part[y0 : y1 + 1, x0 : x1 + 1] = label == values[i]
        parts.append(part)
    return parts


def enlarged(box: Box, grow_px: Sequence[float] | np.ndarray[Any, Any], size_hw: tuple[int, int]) -> Box:
    """The box with each side moved outward, clipped to the slice.

    Args:
        box: (x0, y0, x1, y1) in pixels of the slice.
        grow_px: outward shift of left, top, right and bottom, in pixels of a slice 1024 wide and high.
        size_hw: (h, w) of the slice.

    >>> enlarged((10, 10, 20, 20), (8, 16, 8, 16), (512, 512))
    (6.0, 2.0, 24.0, 28.0)
    """
    height, width = size_hw
    x, y = width / MEDSAM_SIZE_PX, height / MEDSAM_SIZE_PX
    left, top, right, bottom = (float(g) for g in grow_px)
    return (
        max(0.0, box[0] - left * x),
        max(0.0, box[1] - top * y),
        min(float(width), box[2] + right * x),
        min(float(height), box[3] + bottom * y),
    )
