"""Change of an image by an edit: SSIM inside the mask, and the number of changed voxels outside."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics.regression import compute_ssim_and_cs
from numpy.typing import NDArray
from torch.nn import functional

__all__ = ["change_outside", "local_ssim"]

# Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity"
KERNEL_SIZE, KERNEL_SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def local_ssim(original: NDArray[np.generic], result: NDArray[np.generic], region: NDArray[np.generic]) -> float:
    """Mean of the SSIM map (Wang et al. 2004) over a region, LSSIM = sum(M * map) / sum(M); 1 means unchanged.

    Both images are shifted and scaled by the original's minimum and data range, so that the result does not depend on the unit; border
    voxels are replicated. A lower value means changed content, not better content: noise lowers it as well.

    Args:
        original: (C, H, W[, D]), any unit.
        result: the edited image, same shape and unit.
        region: mask M with non-negative weights, (1, H, W[, D]) or (H, W[, D]).

    Raises:
        ValueError: shapes differ, the region is empty, or the original is constant.

    >>> image = np.random.RandomState(0).rand(1, 20, 20)
    >>> region = np.zeros((20, 20))
    >>> region[5:10, 5:10] = 1
    >>> round(local_ssim(image, image, region), 6), local_ssim(image, image[:, ::-1], region) < 0.5
    (1.0, True)
    """
    region = _on_grid(original, result, region)
    if not region.any():
        raise ValueError("region is empty: LSSIM needs at least one non-zero voxel")
    low, high = float(original.min()), float(original.max())
    if not high > low:
        raise ValueError(f"original is constant ({low}): SSIM needs a data range")
    # only the neighbourhood of the region is needed; a whole volume would take minutes
    half = KERNEL_SIZE // 2
    slices = []
    for axis in range(region.ndim):
        hit = np.flatnonzero(region.any(axis=tuple(a for a in range(region.ndim) if a != axis)))
        slices.append(slice(max(int(hit[0]) - half, 0), int(hit[-1]) + half + 1))
    box = tuple(slices)

    def prepare(image: NDArray[np.generic]) -> torch.Tensor:
        scaled = (image[(slice(None), *box)].astype(np.float64) - low) / (high - low)
        tensor = torch.from_numpy(scaled.astype(np.float32))[None]
        return functional.pad(tensor, (half,) * (2 * region.ndim), mode="replicate")

    ssim, _ = compute_ssim_and_cs(
        prepare(result),
        prepare(original),
        spatial_dims=region.ndim,
        kernel_size=(KERNEL_SIZE,) * region.ndim,
        kernel_sigma=(KERNEL_SIGMA,) * region.ndim,
        data_range=1.0,
        k1=K1,
        k2=K2,
    )
    weights = torch.from_numpy(region[box].astype(np.float32))
    return float((ssim[0].mean(0) * weights).sum() / weights.sum())


def change_outside(original: NDArray[np.generic], result: NDArray[np.generic], soft_mask: NDArray[np.generic]) -> int:
    """Number of voxels outside the soft mask that differ; 0 is the package's guarantee.

    Args:
        original: (C, H, W[, D]).
        result: same shape.
        soft_mask: (1, H, W[, D]) or (H, W[, D]); zero means outside.

    Raises:
        ValueError: shapes differ.

    >>> original, mask = np.zeros((1, 3, 3)), np.eye(3)
    >>> change_outside(original, original + mask, mask), change_outside(original, original + 1, mask)
    (0, 6)
    """
    outside = _on_grid(original, result, soft_mask) == 0
    return int(((original != result).any(axis=0) & outside).sum())


def _on_grid(original: NDArray[np.generic], result: NDArray[np.generic], region: NDArray[np.generic]) -> NDArray[np.generic]:
    if original.shape != result.shape:
        raise ValueError(f"original {original.shape} and result {result.shape} must have one shape (C, H, W[, D])")
    if region.shape == (1, *original.shape[1:]):
        region = region[0]
    if region.shape != original.shape[1:]:
        raise ValueError(f"region {region.shape} is not on the grid {original.shape[1:]} of the image")
    return region
