"""A margin around a region, in millimetres of its grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["with_margin"]


def with_margin(region: Tensor, margin_mm: float, spacing_mm: Sequence[float]) -> Tensor:
    """The region and all voxels whose centre is at most ``margin_mm`` from the centre of one of its voxels.

    Args:
        region: (1, H, W[, D]) bool.
        margin_mm: width of the margin; 0 returns the region.
        spacing_mm: size of a voxel along each spatial axis.

    >>> region = torch.zeros(1, 1, 7, dtype=torch.bool)
    >>> region[..., 3] = True
    >>> with_margin(region, 2.0, (1.0, 1.5)).int().tolist()
    [[[0, 0, 1, 1, 1, 0, 0]]]
    """
    from scipy.ndimage import distance_transform_edt

    inside = region[0].detach().cpu().numpy()
    if margin_mm <= 0 or not inside.any():
        return region
    near = []
    for axis, mm in enumerate(spacing_mm):
        hits = np.flatnonzero(inside.any(tuple(i for i in range(inside.ndim) if i != axis)))
        reach = int(margin_mm / mm) + 1
        near.append(slice(max(int(hits[0]) - reach, 0), int(hits[-1]) + reach + 1))
    grown = np.zeros_like(inside)
    grown[tuple(near)] = distance_transform_edt(~inside[tuple(near)], sampling=tuple(spacing_mm)) <= margin_mm
    return torch.from_numpy(grown)[None].to(region.device)
