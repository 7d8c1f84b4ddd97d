"""Read and write medical images on their own grid: a result has the affine, header and stored type of the input."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.errors import GridMismatchError, one_line
from monai_diffaug.files.whole_file import whole_file

__all__ = [
    "ImageFileError",
    "Picture",
    "output_suffix",
    "read_picture",
    "require_same_grid",
    "stem_of",
    "write_picture",
]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".mha", ".nrrd")
PIXEL_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES, *PIXEL_SUFFIXES)
AFFINE_TOLERANCE_MM = 1e-2
SLICE_TOLERANCE_MM = 0.1
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class ImageFileError(ValueError):
    """A file cannot be read as an image this package edits; the message says why and what to do."""


@dataclass(frozen=True)
class Picture:
    """An image file in memory.

    Attributes:
        path: of the file.
        suffix: in lower case, empty for a DICOM folder.
        stored: (C, H, W[, D]) numbers of the file, before scaling.
        slope, inter: value = stored * slope + inter.
        affine: (4, 4) voxel to RAS mm; None for PNG and JPEG.
        header: nibabel or ITK image whose header the writer copies; None for PNG and JPEG.
    """

    path: Path
    suffix: str
    stored: NDArray[Any]
    slope: float = 1.0
    inter: float = 0.0
    affine: NDArray[np.float64] | None = None
    header: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape."""
        return tuple(self.stored.shape[1:])

    @property
    def values(self) -> NDArray[np.float32]:
        """(C, H, W[, D]) float32 in the image's own unit."""
        if self.slope == 1.0 and self.inter == 0.0:
            return self.stored.astype(np.float32)
        return (self.stored.astype(np.float64) * self.slope + self.inter).astype(np.float32)


def suffix_of(path: Path) -> str:
    """Suffix of a known format in lower case, e.g. ``.nii.gz``; empty for other names."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """Name of a file without its suffix, or of a folder.

    >>> stem_of(Path("a/scan.1.nii.gz"))
    'scan.1'
    """
    return path.name[: len(path.name) - len(suffix_of(path))]


def output_suffix(path: Path) -> str:
    """Suffix of the result of an input: the same, but ``.nii.gz`` for a DICOM folder and ``.png`` for (lossy) JPEG.

    >>> output_suffix(Path("photo.JPG"))
    '.png'
    """
    suffix = "" if path.is_dir() else suffix_of(path)
    return ".png" if suffix in PIXEL_SUFFIXES else suffix or ".nii.gz"


def read_picture(path: Path) -> Picture:
    """Read NIfTI, ``.mha``, ``.nrrd``, PNG, JPEG or a folder with one DICOM series.

    Raises:
        ImageFileError: no such file, no read permission, unknown suffix, a corrupt or truncated file, neither 2-D nor 3-D, a colour
            model other than grey or RGB, or non-finite voxels.
    """
    if not path.exists():
        raise ImageFileError(f"{path}: no such file or folder")
    if not os.access(path, os.R_OK):
        raise ImageFileError(f"{path}: no right to read it")
    suffix = suffix_of(path)
    if path.is_dir():
        with _itk_silent():
            picture = _read_dicom(path)
    elif not suffix:
        raise ImageFileError(f"{path}: unknown suffix; use {', '.join(SUFFIXES)} or a folder with one DICOM series")
    elif suffix in NIFTI_SUFFIXES:
        picture = _read_nifti(path, suffix)
    elif suffix in ITK_SUFFIXES:
        picture = _read_itk(path, suffix)
    else:
        picture = _read_pixels(path, suffix)
    if picture.stored.size == 0:
        raise ImageFileError(f"{path}: the image has no voxels, its shape is {picture.shape}")
    if picture.stored.dtype.kind == "f" and not np.isfinite(picture.stored).all():
        count = int((~np.isfinite(picture.stored)).sum())
        raise ImageFileError(f"{path}: {count} voxels are not finite (NaN or infinite); replace them first, e.g. by numpy.nan_to_num")
    return picture


def _read_nifti(path: Path, suffix: str) -> Picture:
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
    return Picture(path, suffix, stored, slope, inter, np.asarray(image.affine, np.float64), image)


def _read_itk(path: Path, suffix: str) -> Picture:
    import itk

    try:
        image = itk.imread(str(path))
    except (RuntimeError, TypeError, KeyError) as error:
        raise ImageFileError(f"{path}: corrupt or truncated, ITK cannot read it ({one_line(error)})") from error
    return _from_itk(path, suffix, image)


def _read_dicom(path: Path) -> Picture:
    import itk

    names = itk.GDCMSeriesFileNames.New()
    names.SetDirectory(str(path))
    series = list(names.GetSeriesUIDs())
    if not series:
        raise ImageFileError(f"{path}: the folder holds no DICOM series")
    if len(series) > 1:
        raise ImageFileError(f"{path}: the folder holds {len(series)} DICOM series; give a folder with one")
    try:
        image = itk.imread(list(names.GetFileNames(series[0])))
    except (RuntimeError, TypeError, KeyError) as error:
        raise ImageFileError(f"{path}: the DICOM series cannot be read ({one_line(error)})") from error
    deviation_mm = float(dict(image).get("ITK_non_uniform_sampling_deviation", 0.0))  # set by ITK's series reader
    if deviation_mm > SLICE_TOLERANCE_MM:
        raise ImageFileError(
            f"{path}: slices of the DICOM series are missing or unevenly spaced (by {deviation_mm:.3g} mm); give the whole series, or "
            "resample it first"
        )
    return _from_itk(path, "", image)


@contextlib.contextmanager
def _itk_silent() -> Iterator[None]:
    """Suppress the warnings that ITK's C++ code prints on stderr; faults are raised as errors here."""
    import itk

    enabled = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        itk.Object.SetGlobalWarningDisplay(enabled)


def _from_itk(path: Path, suffix: str, image: Any) -> Picture:
    import itk

    dimension = image.GetImageDimension()
    channels = image.GetNumberOfComponentsPerPixel()
    if dimension not in (2, 3):
        raise ImageFileError(f"{path}: a {dimension}-D image of shape {tuple(itk.size(image))}; give one 2-D or 3-D volume")
    if channels not in (1, 3):
        raise ImageFileError(f"{path}: {channels} channels; grey (1) or RGB (3) can be edited")
    array = itk.array_from_image(image)
    if channels == 1:
        array = array[..., None]
    # axes of ITK's arrays: z, y, x, channel
    stored = array.transpose(dimension, *reversed(range(dimension)))
    affine = np.eye(4)
    direction = itk.array_from_matrix(image.GetDirection())
    affine[:dimension, :dimension] = direction @ np.diag([float(s) for s in image.GetSpacing()])
    affine[:dimension, 3] = [float(o) for o in image.GetOrigin()]
    return Picture(path, suffix, stored, affine=LPS_TO_RAS @ affine, header=image)


def _read_pixels(path: Path, suffix: str) -> Picture:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            mode = image.mode
            array = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageFileError(f"{path}: corrupt or truncated image ({one_line(error)})") from error
    if mode not in ("L", "RGB", "I;16", "I"):
        raise ImageFileError(f"{path}: a picture of mode {mode}; save it as grey or RGB without alpha or palette first")
    if mode == "I":  # a 16-bit PNG in older versions of Pillow
        array = array.astype(np.uint16)
    stored = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return Picture(path, suffix, stored)


def require_same_grid(image: Picture, other: Picture, role: str) -> None:
    """Check that a mask or label is on the image's grid.

    Raises:
        GridMismatchError: another shape, or the same shape with another affine.
    """
    if other.shape != image.shape:
        raise GridMismatchError(
            f"{role} {other.path.name} {other.shape} is not on the grid of image {image.path.name} {image.shape}; "
            "resample it first, e.g. with monai.transforms.ResampleToMatch(mode='nearest')"
        )
    if image.affine is not None and other.affine is not None:
        apart_mm = float(np.abs(image.affine - other.affine).max())
        if apart_mm > AFFINE_TOLERANCE_MM:
            raise GridMismatchError(
                f"{role} {other.path.name} {other.shape} has the shape of image {image.path.name} {image.shape}, but its "
                f"affine differs by up to {apart_mm:.3g} mm; resample it first, e.g. with "
                "monai.transforms.ResampleToMatch(mode='nearest')"
            )


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
            _write_nifti(stored, like, part, scaled=dtype is None)
        elif suffix in ITK_SUFFIXES:
            _write_itk(stored, like, part)
        elif suffix == ".png":
            from PIL import Image

            Image.fromarray(np.ascontiguousarray(stored[0] if stored.shape[0] == 1 else stored.transpose(1, 2, 0))).save(part)
        else:
            raise ImageFileError(f"{path}: cannot write this suffix; use .nii, .nii.gz, .mha, .nrrd or .png")


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


def _write_nifti(stored: NDArray[Any], like: Picture, part: Path, *, scaled: bool) -> None:
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
        _write_unscaled(image, spatial, part)
    else:
        nib.save(image, part)


def _write_unscaled(image: Any, spatial: NDArray[Any], part: Path) -> None:
    """Write header and stored numbers directly: nibabel's ``save`` would divide the numbers by the slope again."""
    from nibabel.openers import Opener

    header = image.header.copy()
    header["magic"] = header.single_magic
    header["vox_offset"] = 0  # write_to sets it after the extensions
    with Opener(str(part), "wb") as file:
        header.write_to(file)
        file.write(b"\0" * (int(header["vox_offset"]) - file.tell()))
        file.write(spatial.astype(header.get_data_dtype()).tobytes(order="F"))


def _write_itk(stored: NDArray[Any], like: Picture, part: Path) -> None:
    import itk

    dimension = len(like.shape)
    array = stored.transpose(*reversed(range(1, dimension + 1)), 0)
    is_vector = stored.shape[0] > 1
    image = itk.image_from_array(np.ascontiguousarray(array if is_vector else array[..., 0]), is_vector=is_vector)
    image.SetSpacing(like.header.GetSpacing())
    image.SetOrigin(like.header.GetOrigin())
    image.SetDirection(like.header.GetDirection())
    image.SetMetaDataDictionary(like.header.GetMetaDataDictionary())
    itk.imwrite(image, str(part), compression=True)
