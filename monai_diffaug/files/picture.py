"""An image file in memory: stored numbers, scaling, grid and the header that a result copies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.errors import GridMismatchError

__all__ = ["ImageFileError", "Picture", "output_suffix", "require_same_grid", "stem_of", "suffix_of"]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".mha", ".nrrd", ".mhd", ".nhdr")
PIXEL_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES, *PIXEL_SUFFIXES, *DICOM_SUFFIXES)
OUTPUT_SUFFIXES = {  # of inputs whose result has another format: one file, without loss
    **dict.fromkeys((".jpg", ".jpeg", ".bmp"), ".png"),
    **dict.fromkeys(DICOM_SUFFIXES, ".nii.gz"),
    ".tiff": ".tif",
    ".mhd": ".mha",
    ".nhdr": ".nrrd",
}
SHIFT_TOLERANCE = 0.25  # voxel sides; below half a side, nearest resampling would return the same voxels


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
    """Suffix of the result of an input: the same; ``.nii.gz`` for DICOM, ``.png`` for JPEG and BMP, one file for ``.mhd`` and ``.nhdr``.

    >>> output_suffix(Path("photo.JPG")), output_suffix(Path("scan.nii"))
    ('.png', '.nii')
    """
    suffix = ".dcm" if path.is_dir() else suffix_of(path) or ".dcm"
    return OUTPUT_SUFFIXES.get(suffix, suffix)


def require_same_grid(image: Picture, other: Picture, role: str) -> None:
    """Check that a mask or label is on the image's grid.

    Raises:
        GridMismatchError: another shape, or an affine that puts a voxel farther than a quarter of a voxel side away.
    """
    if other.shape != image.shape:
        raise GridMismatchError(
            f"{role} {other.path.name} {other.shape} is not on the grid of image {image.path.name} {image.shape}; "
            "resample it first, e.g. with monai.transforms.ResampleToMatch(mode='nearest')"
        )
    if image.affine is not None and other.affine is not None:
        apart_mm = _largest_shift_mm(image.affine, other.affine, image.shape)
        if apart_mm > SHIFT_TOLERANCE * float(np.linalg.norm(image.affine[:3, :3], axis=0).min()):
            raise GridMismatchError(
                f"{role} {other.path.name} {other.shape} has the shape of image {image.path.name} {image.shape}, but its "
                f"affine puts voxels up to {apart_mm:.3g} mm away; resample it first, e.g. with "
                "monai.transforms.ResampleToMatch(mode='nearest')"
            )


def _largest_shift_mm(one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance in mm between the positions that two affines give a voxel; it is at a corner of the grid."""
    corners = np.array(list(np.ndindex(2, 2, 2)), float) * (np.array([*shape, 1][:3]) - 1)
    shift = corners @ (one - other)[:3, :3].T + (one - other)[:3, 3]
    return float(np.linalg.norm(shift, axis=1).max())
