"""Slice-to-slice continuity of an edited volume inside the mask, beside that of the volume as it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from monai_diffaug.slices import slice_plane, to_slices

__all__ = ["Continuity", "continuity"]


@dataclass(frozen=True)
class Continuity:
    """How neighbouring slices go together; every figure has its counterpart in the original.

    Attributes:
        jump, original_jump: mean absolute difference of neighbouring slices where both are in the mask, in the image's unit.
        jump_ratio: their ratio; 1 is as smooth as the original, slices repainted one by one lie far above.
        correlation, original_correlation: Pearson correlation of neighbouring slices there, -1 to 1.
        end_jump, original_end_jump: the same difference where the mask begins or ends between two slices: from painted to real.
        end_jump_ratio: their ratio; nan when the mask begins and ends nowhere within the volume.
        n_pairs: neighbouring slices with voxels in both masks.
        n_voxels: voxel pairs behind ``jump``.
    """

    jump: float
    original_jump: float
    jump_ratio: float
    correlation: float
    original_correlation: float
    end_jump: float
    original_end_jump: float
    end_jump_ratio: float
    n_pairs: int
    n_voxels: int


def continuity(
    original: ArrayLike, edited: ArrayLike, mask: ArrayLike, *, affine: ArrayLike | None = None, plane: str = "axial"
) -> Continuity:
    """Measure along the direction in which the slices were cut.

    Args:
        original: (C, H, W, D) before the edit, any unit.
        edited: (C, H, W, D) after it.
        mask: (1, H, W, D) or (H, W, D), non-zero where it was repainted.
        affine: (4, 4) voxel to RAS mm; None means stored R, A, S.
        plane: of the slices: "axial", "coronal" or "sagittal".

    Raises:
        ValueError: shapes differ, no volume, or no two neighbouring slices share a masked voxel.
    """
    before, after = (torch.as_tensor(np.asarray(a, np.float64)) for a in (original, edited))
    region = torch.as_tensor(np.asarray(mask) != 0)
    region = region[None] if region.ndim == 3 else region
    if before.ndim != 4 or before.shape != after.shape or region.shape != (1, *before.shape[1:]):
        raise ValueError(
            f"original and edited must be one (C, H, W, D) and mask on its grid, got {tuple(before.shape)}, {tuple(after.shape)} "
            f"and {tuple(region.shape)}"
        )
    cut = slice_plane(affine, plane, 3)
    masks = to_slices(region, cut)
    inside = masks[1:] & masks[:-1]
    edge = masks[1:] ^ masks[:-1]
    if not inside.any():
        raise ValueError("no two neighbouring slices share a masked voxel: continuity needs a mask of two slices or more")
    old, new = to_slices(before, cut), to_slices(after, cut)
    jump, old_jump = _jump(new, inside), _jump(old, inside)
    end, old_end = (_jump(new, edge), _jump(old, edge)) if edge.any() else (float("nan"), float("nan"))
    return Continuity(
        jump=jump,
        original_jump=old_jump,
        jump_ratio=_ratio(jump, old_jump),
        correlation=_correlation(new, inside),
        original_correlation=_correlation(old, inside),
        end_jump=end,
        original_end_jump=old_end,
        end_jump_ratio=_ratio(end, old_end),
        n_pairs=int(inside.flatten(1).any(1).sum()),
        n_voxels=int(inside.sum()),
    )


def _ratio(value: float, of: float) -> float:
    return value / of if of > 0 else (1.0 if value == 0 else float("inf")) if of == 0 else float("nan")


def _pairs(slices: Tensor, where: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    chosen = where.expand(-1, slices.shape[1], -1, -1)
    return slices[:-1][chosen].numpy(), slices[1:][chosen].numpy()


def _jump(slices: Tensor, where: Tensor) -> float:
    first, second = _pairs(slices, where)
    return float(np.abs(first - second).mean())


def _correlation(slices: Tensor, where: Tensor) -> float:
    first, second = _pairs(slices, where)
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / scale) if scale > 0 else 1.0
