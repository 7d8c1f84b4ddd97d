"""The plane in which the models see an image: slices of a volume, and pictures upright whoever read them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from monai_diffaug.geometry.grids import affine_of
from monai_diffaug.geometry.slices import PLANES, SlicePlane, slice_plane

__all__ = ["plane_of"]

THUMBNAIL_PX = 32
LEAST_LIKENESS = 0.5  # correlation below which a picture is not taken for a view of its file
ON_ITS_SIDE = SlicePlane((-1, 1, 0), (False, False, False))


def plane_of(img: NdarrayOrTensor, plane: str) -> SlicePlane | None:
    """Slicing of an image (C, H, W[, D]), see ``slice_plane``; for a 2-D image the way to turn it upright, None if it is upright.

    MONAI's readers hand pictures over with x first, on their side. This is known from the meta data: ``PILReader`` writes width and height
    (a square picture is compared with its file), the readers of NIfTI, MetaImage and DICOM write an affine, which says how rows and columns
    run. An image without such meta data, or a square one that is like neither view of its file, counts as upright.

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
        lies = _lies_by_its_file(img) if size[0] == size[1] else _size_as_read(img) == size
        return ON_ITS_SIDE if lies else None
    if not _is_of_medical_reader(meta) or _was_transposed(img):
        return None
    return _of_affine(img)


def _size_as_read(img: MetaTensor) -> tuple[int, ...]:
    """Spatial size before the first traced transform, e.g. a ``Resized`` to a square."""
    operations = img.applied_operations
    first = operations[0] if operations else {}
    size = first.get("orig_size") if isinstance(first, Mapping) else None
    return tuple(int(length) for length in (img.shape[1:] if size is None else size))


def _lies_by_its_file(img: MetaTensor) -> bool:
    """Whether a square picture is more like its file turned on its side than like the file; small grey versions are compared."""
    try:
        path = Path(str(img.meta.get("filename_or_obj", "")))
        upright = _thumbnail(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):  # no such file any more, or no picture
        return False
    pixels = img.as_tensor().detach().float().mean(0, keepdim=True)
    small = adaptive_avg_pool2d(pixels, THUMBNAIL_PX)[0].cpu().numpy().astype(np.float64)
    if small.std() == 0 or upright.std() == 0:
        return False
    likeness, on_its_side = (float(np.corrcoef(small.ravel(), view.ravel())[0, 1]) for view in (upright, upright.T))
    return on_its_side > max(likeness, LEAST_LIKENESS)


@lru_cache(maxsize=4096)
def _thumbnail(path: Path, changed_ns: int) -> NDArray[np.float64]:
    """A small grey version of a picture file, rows first; ``changed_ns`` lets a changed file be read again."""
    from PIL import Image

    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("RGB") if picture.mode in ("P", "PA") else picture, dtype=np.float32)
    grey = grey if grey.ndim == 2 else grey[..., :3].mean(-1)
    return adaptive_avg_pool2d(torch.from_numpy(np.array(grey))[None], THUMBNAIL_PX)[0].numpy().astype(np.float64)


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
