"""Label files: their class ids as integers, and an edited label with the stored numbers of all voxels whose id is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.files.image_file import write_picture
from monai_diffaug.files.picture import ImageFileError, Picture
from monai_diffaug.masks.labels import ID_TOLERANCE, class_ids

__all__ = ["ids_of_file", "require_storable", "write_label"]

COARSEST_TOLERANCE = 0.25  # farther from a whole number, a scaled value may be of either class


def ids_of_file(label: Picture) -> NDArray[np.int64]:
    """(C, H, W[, D]) class ids of a label file.

    A scale slope s (e.g. 0.498 of a uint8 file) stores a class id within s/2, so 2 may be stored as 1.992; this is class 2.

    Raises:
        ImageFileError: voxels are farther from a whole number, or ids do not fit int64.
    """
    stored = label.stored
    if stored.dtype == np.uint64 and stored.size and int(stored.max()) > np.iinfo(np.int64).max:
        raise ImageFileError(f"label {label.path} has class ids above 2**63 - 1; renumber its classes")
    is_scaled = label.slope != 1.0 or label.inter != 0.0
    if not is_scaled and stored.dtype.kind in "iub":
        return stored.astype(np.int64)
    values = stored.astype(np.float64) * label.slope + label.inter
    tolerance = max(ID_TOLERANCE, min(abs(label.slope) / 2, COARSEST_TOLERANCE)) if stored.dtype.kind in "iu" else ID_TOLERANCE
    try:
        ids: NDArray[np.int64] = class_ids(torch.from_numpy(values), tolerance * (1 + 1e-6)).numpy()
    except ValueError as error:
        raise ImageFileError(f"{label.path}: {error}") from error
    return ids


def require_storable(value: int, label: Picture) -> None:
    """Raise ImageFileError unless the file's type and scaling can hold the class id."""
    _to_stored(np.array([value], np.int64), label)


def write_label(ids: NDArray[np.int64], like: Picture, path: Path) -> None:
    """Write class ids (C, H, W[, D]) with the grid, header, type and scaling of a label file.

    Voxels whose class id is that of ``like`` keep their stored number.

    Raises:
        ImageFileError: a new class id does not fit the file's type or scaling.
        GridMismatchError: the ids are not on the grid.
    """
    changed = np.asarray(ids != ids_of_file(like)) if ids.shape == like.stored.shape else np.ones(ids.shape, bool)
    stored = like.stored.copy() if ids.shape == like.stored.shape else np.zeros(ids.shape, like.stored.dtype)
    stored[changed] = _to_stored(ids[changed], like)
    write_picture(stored, like, path, as_stored=True)


def _to_stored(ids: NDArray[np.int64], like: Picture) -> NDArray[np.generic]:
    dtype, limit = like.stored.dtype, 2.0**63
    if like.slope == 1.0 and like.inter == 0.0:
        numbers = ids.astype(dtype)  # wraps where an id does not fit
        same = (numbers >= 0) == (ids >= 0)
        back = numbers.astype(np.int64)
    else:
        exact = (ids.astype(np.float64) - like.inter) / like.slope
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            exact = np.clip(np.rint(exact), float(limits.min), float(limits.max) if limits.bits < 64 else np.nextafter(limit, 0))
        numbers = exact.astype(dtype)
        back = np.rint(numbers.astype(np.float64) * like.slope + like.inter).astype(np.int64)
        same = np.ones(ids.shape, bool)
    wrong = ids[~same | (back != ids)]
    if wrong.size:
        scaling = "" if like.slope == 1.0 and like.inter == 0.0 else f" with scale slope {like.slope:g} and intercept {like.inter:g}"
        raise ImageFileError(
            f"label {like.path} of type {dtype}{scaling} cannot hold class id {int(wrong.flat[0])}; save it with another type first"
        )
    return numbers
