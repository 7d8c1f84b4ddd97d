"""The plane in which the models see an image: slices of a volume, and pictures upright whoever read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd

from monai_diffaug.geometry.grids import affine_of
from monai_diffaug.geometry.slices import PLANES, SlicePlane, slice_plane

__all__ = ["plane_of"]

ON_ITS_SIDE = SlicePlane((-1, 1, 0), (False, False, False))


def plane_of(img: NdarrayOrTensor, plane: str) -> SlicePlane | None:
    """Slicing of an image (C, H, W[, D]), see ``slice_plane``; for a 2-D image the way to turn it upright, None if it is upright.

    MONAI's readers hand pictures over with x first, on their side. This is known from the meta data: ``PILReader`` writes width and height
    (not for a square picture, which counts as upright), the readers of NIfTI, MetaImage and DICOM write an affine, which says how rows and
    columns run. An image without such meta data counts as upright.

    Args:
        img: array, tensor or ``MetaTensor``.
        plane: anatomical plane of the slices of a volume.

    Raises:
        ValueError: unknown plane, or neither 2 nor 3 spatial dimensions.

    >>> import torch
    >>> meta = {"width": 60, "height": 40}
    >>> plane_of(MetaTensor(torch.zeros(1, 60, 40), meta=meta), "axial")
    SlicePlane(axes=(-1, 1, 0), flips=(False, False, False))
    >>> print(plane_of(MetaTensor(torch.zeros(1, 40, 60), meta=meta), "axial"))
    None
    """
    spatial = slice_plane(affine_of(img), plane, img.ndim - 1)
    if spatial is not None or not isinstance(img, MetaTensor):
        return spatial
    meta = img.meta
    if "width" in meta and "height" in meta:
        size = int(meta["width"]), int(meta["height"])
        return ON_ITS_SIDE if size[0] != size[1] and _size_as_read(img) == size else None
    if not _is_of_medical_reader(meta) or _was_transposed(img):
        return None
    return _of_affine(img)


def _size_as_read(img: MetaTensor) -> tuple[int, ...]:
    """Spatial size before the first traced transform, e.g. a ``Resized`` to a square."""
    operations = img.applied_operations
    first = operations[0] if operations else {}
    size = first.get("orig_size") if isinstance(first, Mapping) else None
    return tuple(int(length) for length in (img.shape[1:] if size is None else size))


def _is_of_medical_reader(meta: Mapping[str, Any]) -> bool:
    """``NibabelReader``, ``ITKReader`` and ``PydicomReader`` say in which space their affine is."""
    return meta.get("space") is not None and "original_affine" in meta


def _was_transposed(img: MetaTensor) -> bool:
    """Rows and columns were exchanged after reading, which leaves the affine as it is (``Transposed``); not known for a square image."""
    stored = img.meta.get("spatial_shape")
    size = _size_as_read(img)
    return stored is not None and size[0] != size[1] and size == tuple(int(length) for length in stored[:2])[::-1]


def _of_affine(img: MetaTensor) -> SlicePlane | None:
    """The anatomical plane in which the array of a 2-D image lies; None for an oblique one or without a direction."""
    affine = to_affine_nd(3, np.asarray(affine_of(img), dtype=np.float64))  # that of a 2-D image of ITK is (3, 3)
    for plane in PLANES:
        try:
            spatial = slice_plane(affine, plane, 3)
        except ValueError:
            return None
        if spatial is not None and spatial.axes[0] == 2:
            _, rows, columns = spatial.axes
            return (
                None
                if (rows, columns) == (0, 1) and not any(spatial.flips[1:])
                else SlicePlane((-1, rows, columns), (False, *spatial.flips[1:]))
            )
    return None
