"""Read and write medical images on their own grid: a result has the affine, header and stored type of the input."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.files.dicom_series import read_dicom
from monai_diffaug.files.itk_volume import read_itk, write_itk
from monai_diffaug.files.nifti_volume import read_nifti, write_nifti
from monai_diffaug.files.picture import DICOM_SUFFIXES, ITK_SUFFIXES, NIFTI_SUFFIXES, SUFFIXES, ImageFileError, Picture, suffix_of
from monai_diffaug.files.upright_pictures import read_pixels
from monai_diffaug.files.whole_file import whole_file

__all__ = ["read_picture", "write_picture"]


def read_picture(path: Path, *, layers: bool = False, convert: Callable[[Any], Any] | None = None) -> Picture:
    """Read NIfTI, MetaImage, NRRD, PNG, JPEG, BMP, TIFF of one page, a DICOM file or a folder with one DICOM series.

    Commands that edit and commands that train read images and labels here, so they see the same voxels and the same affine.

    Args:
        path: of the file or folder.
        layers: any number of channels, e.g. the layers of a ``.seg.nrrd``; otherwise 1 or 3.
        convert: for pictures, as for ``read_pixels``.

    Raises:
        ImageFileError: no such file, no read permission, unknown suffix, a corrupt or truncated file, neither 2-D nor 3-D, a colour
            model other than grey or RGB, or non-finite voxels.
    """
    if not path.exists():
        raise ImageFileError(f"{path}: no such file or folder")
    if not os.access(path, os.R_OK):
        raise ImageFileError(f"{path}: no right to read it")
    suffix = suffix_of(path)
    if path.is_dir() or suffix in DICOM_SUFFIXES or (not suffix and _starts_as_dicom(path)):
        picture = read_dicom(path)
    elif not suffix:
        raise ImageFileError(f"{path}: unknown suffix; use {', '.join(SUFFIXES)} or a folder with one DICOM series")
    elif suffix in NIFTI_SUFFIXES:
        picture = read_nifti(path, suffix)
    elif suffix in ITK_SUFFIXES:
        picture = read_itk(path, suffix)
    else:
        picture = read_pixels(path, suffix, convert)
    if picture.stored.size == 0:
        raise ImageFileError(f"{path}: the image has no voxels, its shape is {picture.shape}")
    channels = picture.stored.shape[0]
    if channels not in (1, 3) and not layers:
        raise ImageFileError(f"{path}: {channels} channels; grey (1) or RGB (3) can be edited")
    if picture.stored.dtype.kind == "f" and not np.isfinite(picture.stored).all():
        count = int((~np.isfinite(picture.stored)).sum())
        raise ImageFileError(f"{path}: {count} voxels are not finite (NaN or infinite); replace them first, e.g. by numpy.nan_to_num")
    return picture


def _starts_as_dicom(path: Path) -> bool:
    """Files of a scanner often have no suffix; DICOM PS3.10 puts "DICM" after 128 bytes."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def write_picture(values: NDArray[Any], like: Picture, path: Path, *, dtype: Any = None, as_stored: bool = False) -> None:
    """Write on the grid of ``like``, with its header and stored type; voxels with unchanged values are stored bit-identically.

    Args:
        values: (C, H, W[, D]) in the image's own unit; rounded and clipped if the stored type is an integer.
        like: image with the grid, header and type of the file.
        path: with the suffix ``output_suffix(like)``.
        dtype: another stored type, unscaled, e.g. uint8 for a mask; then ``values`` may have one channel.
        as_stored: ``values`` are the stored numbers, before scaling, in the stored type.

    Raises:
        GridMismatchError: ``values`` are not on the grid.
        ValueError: values to be stored as integers are not finite.
    """
    if tuple(values.shape[1:]) != like.shape:
        raise GridMismatchError(f"values {values.shape[1:]} are not on the grid {like.shape} of {like.path.name}")
    stored = values if as_stored else _cast(values, np.dtype(dtype)) if dtype is not None else _to_stored(values, like)
    suffix = suffix_of(path)
    with whole_file(path) as part:
        if suffix in NIFTI_SUFFIXES:
            write_nifti(stored, like, part, scaled=dtype is None)
        elif suffix in ITK_SUFFIXES:
            write_itk(stored, like, part)
        elif suffix in (".png", ".tif"):
            from PIL import Image

            Image.fromarray(np.ascontiguousarray(stored[0] if stored.shape[0] == 1 else stored.transpose(1, 2, 0))).save(part)
        else:
            raise ImageFileError(f"{path}: cannot write this suffix; use .nii, .nii.gz, .mha, .nrrd, .png or .tif")


def _cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind not in "iu" or values.dtype == dtype or values.dtype.kind == "b":
        return values.astype(dtype)
    if not np.isfinite(values).all():
        raise ValueError(f"values are not finite and cannot be stored as {dtype}")
    limits = np.iinfo(dtype)
    # the limit of int64 is not a float64: use the largest double below it
    high = float(limits.max) if limits.bits < 64 else np.nextafter(float(limits.max), 0)
    return np.clip(np.rint(values.astype(np.float64)), float(limits.min), high).astype(dtype)


def _to_stored(values: NDArray[Any], like: Picture) -> NDArray[Any]:
    if values.dtype == like.stored.dtype and like.slope == 1.0 and like.inter == 0.0:
        return values
    changed = values != like.values
    scaled = values
    if like.slope != 1.0 or like.inter != 0.0:
        scaled = (values.astype(np.float64) - like.inter) / like.slope
    rounded = _cast(np.where(changed, scaled, 0), like.stored.dtype)
    return np.where(changed, rounded, like.stored)
