"""NIfTI files: voxels before scaling, affine in mm, and a result with the header of the input."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.errors import one_line
from monai_diffaug.files.picture import NIFTI_SUFFIXES, ImageFileError, Picture

__all__ = ["read_nifti", "write_nifti"]

MM_PER_UNIT = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}


def read_nifti(path: Path, suffix: str) -> Picture:
    """Read a NIfTI file; an affine in metres or micrometres (``xyzt_units``) is converted to mm.

    Raises:
        ImageFileError: a corrupt or truncated file, neither 2-D nor 3-D, or not one number per voxel.
    """
    import nibabel as nib
    from nibabel import filebasedimages as nifti_errors
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nib.load(path)
        shape = tuple(int(n) for n in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (2, 3):
            raise ImageFileError(
                f"{path}: a {len(shape)}-D image of shape {shape}; give one 2-D or 3-D volume, e.g. split by nibabel.four_to_three"
            )
        stored = np.asarray(image.dataobj.get_unscaled())
        slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    except ImageFileError:
        raise
    except (nifti_errors.ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ImageFileError(f"{path}: corrupt or truncated NIfTI file ({one_line(error)})") from error
    if stored.dtype.kind not in "iuf":
        raise ImageFileError(f"{path}: voxels of type {stored.dtype} are not supported; store one number per voxel")
    # torch needs native byte order; the header restores that of the file
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False).reshape(shape, order="F")[None]
    affine = np.array(image.affine, np.float64)
    affine[:3] *= MM_PER_UNIT[_unit_of(image)]
    return Picture(path, suffix, stored, slope, inter, affine, image)


def _unit_of(image: Any) -> str:
    try:
        return str(image.header.get_xyzt_units()[0])
    except KeyError:  # a code that the format does not define
        return "unknown"


def write_nifti(stored: NDArray[Any], like: Picture, part: Path, *, scaled: bool) -> None:
    """Write stored numbers (1, H, W[, D]) with the header of ``like``; ``scaled`` keeps its slope and intercept."""
    import nibabel as nib

    spatial = stored[0]
    image: Any
    if like.suffix in NIFTI_SUFFIXES:
        header = like.header.header.copy()
        header.set_data_dtype(stored.dtype)
        spatial = spatial.reshape(like.header.shape, order="F")
        image = type(like.header)(spatial, None, header)
    else:
        image = nib.Nifti1Image(spatial, like.affine)
        image.header.set_data_dtype(stored.dtype)
        image.header.set_xyzt_units("mm")
    keeps_scaling = scaled and (like.slope != 1.0 or like.inter != 0.0)
    # with the scaling in its header, nibabel writes the array unchanged
    image.header.set_slope_inter(like.slope if keeps_scaling else 1.0, like.inter if keeps_scaling else 0.0)
    if keeps_scaling:
        write_unscaled(image, spatial, part)
    else:
        nib.save(image, part)


def write_unscaled(image: Any, spatial: NDArray[Any], part: Path) -> None:
    """Write header and stored numbers directly: nibabel's ``save`` would divide the numbers by the slope again."""
    from nibabel.openers import Opener

    header = image.header.copy()
    header["magic"] = header.single_magic
    header["vox_offset"] = 0  # write_to sets it after the extensions
    with Opener(str(part), "wb") as file:
        header.write_to(file)
        file.write(b"\0" * (int(header["vox_offset"]) - file.tell()))
        file.write(spatial.astype(header.get_data_dtype()).tobytes(order="F"))
