"""Soft masks, and the composite in which every voxel outside the soft mask stays bit-identical."""

from __future__ import annotations

import math

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor

from monai_diffaug.geometry.roi import extent_of

__all__ = ["SOFT_MODES", "composite", "soft_mask"]

SOFT_MODES = ("grow", "inner", "centre")
NEGLIGIBLE = 1e-3
REACH = 3.0  # radius of the Gaussian kernel in standard deviations


def soft_mask(mask: Tensor, width_px: float, mode: str = "grow") -> Tensor:
    """Turn a hard mask M into weights in [0, 1] (Soft Mask Inpainting Strategy, MedSoft-Diffusion 2025).

    G(M) is M after a Gaussian filter. A mask at the image's border is continued beyond it, so it has no soft edge there.

    Args:
        mask: (h, w), non-zero means repaint.
        width_px: standard deviation of the Gaussian in pixels; 0 keeps the mask hard.
        mode: "grow": max(M, min(1, 2 G(M))), 1 inside and falling from 1 outside; "inner": M max(0, 2 G(M) - 1), falling to 0 inside;
            "centre": G(M), 0.5 at the boundary.

    Returns:
        (h, w) float32; weights below 0.001 are exactly 0.

    Raises:
        ValueError: unknown mode or negative width.

    >>> mask = torch.zeros(9, 9)
    >>> mask[3:6, 3:6] = 1
    >>> soft = soft_mask(mask, width_px=1.0)
    >>> bool((soft[mask > 0] == 1).all()), bool(0 < soft[4, 2] < 1), float(soft[0, 0])
    (True, True, 0.0)
    """
    if mode not in SOFT_MODES:
        raise ValueError(f"mode must be one of {', '.join(SOFT_MODES)}, got {mode!r}")
    if width_px < 0:
        raise ValueError(f"width_px must be >= 0, got {width_px}")
    if width_px == 0 or not bool(mask.any()):
        return (mask != 0).float()
    near = _within_reach(mask, math.ceil(REACH * width_px) + 1)
    hard = (mask[near] != 0).float()
    with torch.autocast(hard.device.type, enabled=False):
        kernel = gaussian_1d(torch.tensor(float(width_px), dtype=torch.float32, device=hard.device), truncated=REACH)
        blurred = separable_filtering(hard[None, None], [kernel, kernel], mode="replicate")[0, 0].clamp(0, 1)
    if mode == "grow":
        # 1 - (1 - M)(1 - G(M)) would fall from 1 to 1/2 at the boundary: such a seam was measured to be worse than that of a hard mask
        soft = torch.maximum(hard, (2 * blurred).clamp(0, 1))
    elif mode == "inner":
        soft = hard * (2 * blurred - 1).clamp(0, 1)
    else:
        soft = blurred
    weights = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    weights[near] = torch.where(soft < NEGLIGIBLE, torch.zeros_like(soft), soft)
    return weights


def _within_reach(mask: Tensor, reach: int) -> tuple[slice, slice]:
    """Rows and columns of (h, w) within ``reach`` pixels of the mask."""
    extent = extent_of(mask)
    return slice(max(extent.top - reach, 0), extent.bottom + reach + 1), slice(max(extent.left - reach, 0), extent.right + reach + 1)


def composite(original: Tensor, repainted: Tensor, soft: Tensor) -> Tensor:
    """original (1 - m) + repainted m, in the original's dtype; bit-identical to the original where m is 0.

    Args:
        original: (..., h, w) any dtype.
        repainted: same shape, float, in the original's unit.
        soft: weights m in [0, 1], broadcastable.

    >>> composite(torch.tensor([10, 20, 30]), torch.tensor([0.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 1.0])).tolist()
    [10, 10, 0]
    """
    exact = torch.float64 if original.dtype in (torch.float64, torch.int64, torch.int32) else torch.float32
    weight = soft.to(exact)
    mixed = original.to(exact) * (1 - weight) + repainted.to(exact) * weight
    if original.dtype == torch.bool:
        mixed = mixed >= 0.5
    elif not original.dtype.is_floating_point:
        limits = torch.iinfo(original.dtype)
        mixed = mixed.round().clamp(limits.min, limits.max)
    return torch.where(soft > 0, mixed.to(original.dtype), original)
