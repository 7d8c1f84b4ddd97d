"""Volumes as stacks of 2-D slices in an anatomical plane, seen as a radiologist sees them, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["PLANES", "Slab", "SlicePlane", "from_slices", "hit_along", "pixel_mm", "slab_of", "slice_plane", "to_slices", "touched"]

# For each plane the world axes (0 right, 1 anterior, 2 superior) of slice, row and column, with the sign in which they
# run: slices towards + world, rows from the top of the picture, columns from its left (radiological: patient's right).
PLANES: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "axial": ((2, 1), (1, -1), (0, -1)),
    "coronal": ((1, 1), (2, -1), (0, -1)),
    "sagittal": ((0, 1), (2, -1), (1, -1)),
}


@dataclass(frozen=True)
class SlicePlane:
    """How the voxel axes of one grid become slice, row and column.

    Attributes:
        axes: spatial axis (0, 1, 2) of slice, row and column.
        flips: which of the three run against the voxel order.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


def slice_plane(affine: ArrayLike | None, plane: str, spatial_ndim: int = 3) -> SlicePlane | None:
    """The slicing of a grid in an anatomical plane; None for 2-D images, which are one slice as they are.

    The same anatomy gives the same slices however the volume is stored. For an oblique grid the nearest axis counts.

    Args:
        affine: (4, 4) voxel to RAS+ world in mm; None means identity (stored R, A, S).
        plane: "axial", "coronal" or "sagittal".
        spatial_ndim: 2 or 3.

    Raises:
        ValueError: unknown plane, or neither 2 nor 3 spatial dimensions.
    """
    if plane not in PLANES:
        raise ValueError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
    if spatial_ndim not in (2, 3):
        raise ValueError(f"an image must be (C, H, W) or (C, H, W, D), got {spatial_ndim} spatial dimensions")
    if spatial_ndim == 2:
        return None
    from nibabel.orientations import io_orientation

    matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    orientation = io_orientation(matrix)
    if np.isnan(orientation).any():
        raise ValueError(f"the affine has a zero axis, so the plane {plane!r} is undefined: {matrix.tolist()}")
    voxel_axis = {int(world): (axis, int(sign)) for axis, (world, sign) in enumerate(orientation)}
    axes, flips = [], []
    for world, wanted in PLANES[plane]:
        axis, sign = voxel_axis[world]
        axes.append(axis)
        flips.append(sign != wanted)
    return SlicePlane((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def pixel_mm(affine: ArrayLike | None, plane: SlicePlane | None) -> float:
    """Size of a pixel of the slices: the geometric mean of its sides in mm; 1 without an affine."""
    if affine is None:
        return 1.0
    from monai.data.utils import affine_to_spacing

    spacing_mm = affine_to_spacing(np.asarray(affine, dtype=np.float64))
    rows, columns = (0, 1) if plane is None else plane.axes[1:]
    return float(np.sqrt(spacing_mm[rows] * spacing_mm[columns]))


def to_slices(volume: Tensor, plane: SlicePlane | None) -> Tensor:
    """(C, H, W) -> (1, C, H, W), or (C, H, W, D) -> (S, C, rows, columns) in the plane."""
    if plane is None:
        return volume[None]
    slices = volume.permute(1 + plane.axes[0], 0, 1 + plane.axes[1], 1 + plane.axes[2])
    flipped = _flipped_dims(plane)
    return slices.flip(flipped) if flipped else slices


def from_slices(slices: Tensor, plane: SlicePlane | None) -> Tensor:
    """The inverse of ``to_slices``."""
    if plane is None:
        return slices[0]
    flipped = _flipped_dims(plane)
    slices = slices.flip(flipped) if flipped else slices
    order = (plane.axes[0], -1, plane.axes[1], plane.axes[2])
    return slices.permute(1, *(order.index(axis) for axis in range(3)))


def touched(mask_slices: Tensor) -> list[int]:
    """Positions of the slices of (S, 1, h, w) in which the mask is not zero."""
    hit: list[int] = (mask_slices != 0).flatten(1).any(1).nonzero().flatten().tolist()
    return hit


@dataclass(frozen=True)
class Slab:
    """The neighbouring slices that a mask touches: an edit need not look at, or copy, the rest of a volume.

    Attributes:
        axis: of (C, H, W[, D]) that the slices lie along; 0 for a 2-D image, which is a slab of one slice, whole in any case.
        start, length: voxels along it.
        first: position of its first slice in the stack of the volume.
    """

    axis: int
    start: int
    length: int
    first: int

    def of(self, volume: Tensor) -> Tensor:
        """The view (C, ...) of a volume or 2-D image."""
        return volume if self.axis == 0 else volume.narrow(self.axis, self.start, self.length)


def slab_of(mask: Tensor, plane: SlicePlane | None) -> Slab:
    """The slab of a mask (1, H, W[, D]), non-zero counts; its length is 0 for an empty mask."""
    if plane is None:
        return Slab(0, 0, int(bool(mask.any())), 0)
    axis = 1 + plane.axes[0]
    hits = hit_along(mask, axis).nonzero().flatten()
    start, stop = (int(hits[0]), int(hits[-1]) + 1) if len(hits) else (0, 0)
    return Slab(axis, start, stop - start, mask.shape[axis] - stop if plane.flips[0] else start)


def hit_along(mask: Tensor, axis: int) -> Tensor:
    """(n,) bool: where along an axis of a mask there is a voxel that is not zero.

    On a CPU by NumPy, which is three to ten times as fast at it.
    """
    others = tuple(i for i in range(mask.ndim) if i != axis)
    if mask.device.type != "cpu" or mask.dtype == torch.bfloat16:
        return (mask != 0).any(dim=others)
    return torch.from_numpy(mask.detach().numpy().any(others))


def _flipped_dims(plane: SlicePlane) -> list[int]:
    return [dim for dim, flip in zip((0, 2, 3), plane.flips, strict=True) if flip]
