"""Volumes as stacks of 2-D slices in an anatomical plane, in the radiological view, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = [
    "PLANES",
    "Slab",
    "SlicePlane",
    "from_slices",
    "hit_along",
    "longest_side_mm",
    "pixel_mm",
    "slab_of",
    "slice_plane",
    "slice_spacing_mm",
    "to_slices",
    "touched",
]

# World axes (0 right, 1 anterior, 2 superior) of slice, row and column for each plane, and their signs: slices run towards + world,
# rows from the top of the picture, columns from its left (radiological view: the patient's right).
PLANES: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "axial": ((2, 1), (1, -1), (0, -1)),
    "coronal": ((1, 1), (2, -1), (0, -1)),
    "sagittal": ((0, 1), (2, -1), (1, -1)),
}


@dataclass(frozen=True)
class SlicePlane:
    """Voxel axes of a grid for slice, row and column.

    Attributes:
        axes: spatial axis (0, 1, 2) of slice, row and column; for a 2-D image that lies on its side the first is -1.
        flips: True for those of the three that run against the voxel order.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


def slice_plane(affine: ArrayLike | None, plane: str, spatial_ndim: int = 3) -> SlicePlane | None:
    """Slicing of a grid in an anatomical plane; None for 2-D images, which are a single slice.

    The slices do not depend on the orientation in which the volume is stored. For an oblique grid the nearest axes are used.

    Args:
        affine: (4, 4) voxel to RAS+ world in mm; None means identity (stored R, A, S).
        plane: "axial", "coronal" or "sagittal".
        spatial_ndim: 2 or 3.

    Raises:
        ValueError: unknown plane, or neither 2 nor 3 spatial dimensions.

    >>> slice_plane(np.diag([-1.0, -1.0, 1.0, 1.0]), "axial")  # stored L, P, S
    SlicePlane(axes=(2, 1, 0), flips=(False, False, False))
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
    for world, direction in PLANES[plane]:
        axis, sign = voxel_axis[world]
        axes.append(axis)
        flips.append(sign != direction)
    return SlicePlane((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def pixel_mm(affine: ArrayLike | None, plane: SlicePlane | None) -> float:
    """Size of a pixel of the slices: geometric mean of its sides in mm; 1 without an affine.

    >>> pixel_mm(np.diag([2.0, 8.0, 5.0, 1.0]), slice_plane(None, "axial"))
    4.0
    """
    if affine is None:
        return 1.0
    from monai.data.utils import affine_to_spacing

    spacing_mm = affine_to_spacing(np.asarray(affine, dtype=np.float64))
    rows, columns = (0, 1) if plane is None else plane.axes[1:]
    return float(np.sqrt(spacing_mm[rows] * spacing_mm[columns]))


def slice_spacing_mm(affine: ArrayLike | None, plane: SlicePlane | None) -> tuple[float, float, float]:
    """Distances in mm of slices, rows and columns; 1 without an affine, and for the slices of a 2-D image.

    >>> slice_spacing_mm(np.diag([2.0, 8.0, 5.0, 1.0]), slice_plane(None, "axial"))
    (5.0, 8.0, 2.0)
    """
    if affine is None:
        return 1.0, 1.0, 1.0
    from monai.data.utils import affine_to_spacing

    spacing: list[float] = affine_to_spacing(np.asarray(affine, dtype=np.float64)).tolist()
    if plane is None or plane.axes[0] < 0:
        rows, columns = (0, 1) if plane is None else plane.axes[1:]
        return 1.0, spacing[rows], spacing[columns]
    return spacing[plane.axes[0]], spacing[plane.axes[1]], spacing[plane.axes[2]]


def longest_side_mm(mask: Tensor, affine: ArrayLike | None, plane: SlicePlane | None) -> float:
    """Longest side in mm of the bounding box of a mask (1, H, W[, D]); pixels without an affine, 0 for an empty mask.

    >>> mask = torch.zeros(1, 9, 9, 9)
    >>> mask[:, 2:5, 2:6, 3:5] = 1
    >>> longest_side_mm(mask, np.diag([1.0, 1.0, 3.0, 1.0]), slice_plane(None, "axial"))
    6.0
    """
    spacing_mm = slice_spacing_mm(affine, plane)
    axes = (0, 1) if plane is None else plane.axes[1:]
    lengths = dict(zip(axes, spacing_mm[1:], strict=True))
    if plane is not None and plane.axes[0] >= 0:
        lengths[plane.axes[0]] = spacing_mm[0]
    hits = {axis: hit_along(mask, 1 + axis).nonzero().flatten() for axis in lengths}
    return max((float((hit[-1] - hit[0] + 1) * lengths[axis]) for axis, hit in hits.items() if len(hit)), default=0.0)


def slice_mm(affine: ArrayLike | None, plane: SlicePlane | None) -> float:
    """Distance of neighbouring slices in mm; 1 without an affine or slices.

    >>> slice_mm(np.diag([2.0, 8.0, 5.0, 1.0]), slice_plane(None, "axial"))
    5.0
    """
    if affine is None or plane is None or plane.axes[0] < 0:
        return 1.0
    from monai.data.utils import affine_to_spacing

    return float(affine_to_spacing(np.asarray(affine, dtype=np.float64))[plane.axes[0]])


def to_slices(volume: Tensor, plane: SlicePlane | None) -> Tensor:
    """(C, H, W) -> (1, C, H, W), or (C, H, W, D) -> (S, C, rows, columns) in the plane.

    >>> to_slices(torch.zeros(1, 4, 5, 6), slice_plane(None, "axial")).shape
    torch.Size([6, 1, 5, 4])
    """
    if plane is None:
        return volume[None]
    if plane.axes[0] < 0:
        slices = volume.permute(0, 1 + plane.axes[1], 1 + plane.axes[2])[None]
    else:
        slices = volume.permute(1 + plane.axes[0], 0, 1 + plane.axes[1], 1 + plane.axes[2])
    flipped = _flipped_dims(plane)
    return slices.flip(flipped) if flipped else slices


def from_slices(slices: Tensor, plane: SlicePlane | None) -> Tensor:
    """Inverse of ``to_slices``.

    >>> volume, plane = torch.rand(1, 4, 5, 6), slice_plane(None, "sagittal")
    >>> torch.equal(from_slices(to_slices(volume, plane), plane), volume)
    True
    """
    if plane is None:
        return slices[0]
    flipped = _flipped_dims(plane)
    slices = slices.flip(flipped) if flipped else slices
    if plane.axes[0] < 0:
        return slices[0].permute(0, *(1 + plane.axes[1:].index(axis) for axis in range(2)))
    order = (plane.axes[0], -1, plane.axes[1], plane.axes[2])
    return slices.permute(1, *(order.index(axis) for axis in range(3)))


def touched(mask_slices: Tensor) -> list[int]:
    """Indices of the slices of (S, 1, h, w) in which the mask is not zero.

    >>> touched(torch.tensor([0.0, 2.0, 0.0, 1.0]).view(4, 1, 1, 1))
    [1, 3]
    """
    hit: list[int] = (mask_slices != 0).flatten(1).any(1).nonzero().flatten().tolist()
    return hit


@dataclass(frozen=True)
class Slab:
    """The consecutive slices from the first to the last one with a mask; an edit neither reads nor copies the rest of the volume.

    Attributes:
        axis: slicing axis of (C, H, W[, D]); 0 for a 2-D image, which is always a whole slab of one slice.
        start, length: voxels along the axis.
        first: index of its first slice in the stack of the volume.
    """

    axis: int
    start: int
    length: int
    first: int

    def of(self, volume: Tensor) -> Tensor:
        """View of the slab in a volume or 2-D image (C, ...)."""
        return volume if self.axis == 0 else volume.narrow(self.axis, self.start, self.length)


def slab_of(mask: Tensor, plane: SlicePlane | None) -> Slab:
    """Slab of the non-zero voxels of a mask (1, H, W[, D]); its length is 0 for an empty mask.

    >>> mask = torch.zeros(1, 4, 4, 9)
    >>> mask[..., 2:5] = 1
    >>> slab_of(mask, slice_plane(None, "axial"))
    Slab(axis=3, start=2, length=3, first=2)
    """
    if plane is None:
        return Slab(0, 0, int(bool(mask.any())), 0)
    axis = 1 + plane.axes[0]
    hits = hit_along(mask, axis).nonzero().flatten()
    start, stop = (int(hits[0]), int(hits[-1]) + 1) if len(hits) else (0, 0)
    return Slab(axis, start, stop - start, mask.shape[axis] - stop if plane.flips[0] else start)


def hit_along(mask: Tensor, axis: int) -> Tensor:
    """(n,) bool: True for the positions along an axis of a mask with a non-zero voxel.

    On a CPU it uses NumPy, which is three to ten times faster here.
    """
    others = tuple(i for i in range(mask.ndim) if i != axis)
    if mask.device.type != "cpu" or mask.dtype == torch.bfloat16:
        return (mask != 0).any(dim=others)
    return torch.from_numpy(mask.detach().numpy().any(others))


def _flipped_dims(plane: SlicePlane) -> list[int]:
    return [dim for dim, flip in zip((0, 2, 3), plane.flips, strict=True) if flip]
