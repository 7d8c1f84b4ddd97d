"""A DICOM file, or a folder with one DICOM series: each slice with its own rescaling, the affine from the positions of the slices."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.errors import one_line
from monai_diffaug.files.itk_volume import LPS_TO_RAS, itk_silent
from monai_diffaug.files.picture import DICOM_SUFFIXES, ImageFileError, Picture, suffix_of

__all__ = ["read_dicom"]

MODALITY = "0008|0060"
SERIES_TEXT = "0008|103e"
THICKNESS = "0018|0050"
SERIES = "0020|000e"
SERIES_NUMBER = "0020|0011"
POSITION = "0020|0032"
COSINES = "0020|0037"
COLOURS = "0028|0004"
FRAMES = "0028|0008"
SPACING = "0028|0030"
TAGS = (MODALITY, SERIES_TEXT, THICKNESS, SERIES, SERIES_NUMBER, POSITION, COSINES, COLOURS, FRAMES, SPACING)

SLICE_TOLERANCE_MM = 0.1
SAME_PLACE_MM = 1e-2
COSINE_TOLERANCE = 1e-3
GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class _Slice:
    """One file: DICOM tags such as ``0020|0032``, as text."""

    path: Path
    tags: dict[str, str]

    def text(self, tag: str) -> str:
        return self.tags.get(tag, "").strip().strip("\0").strip()

    def numbers(self, tag: str, count: int) -> NDArray[np.float64] | None:
        """The numbers of a tag; None if it is missing or has another number of them."""
        try:
            numbers = np.array([float(part) for part in self.text(tag).split("\\")])
        except ValueError:
            return None
        return numbers if numbers.size == count and np.isfinite(numbers).all() else None


def read_dicom(folder: Path) -> Picture:
    """Read the one series of a folder, or one file; a tilted gantry gives a sheared affine (DICOM PS3.3 C.7.6.2.1.1).

    Raises:
        ImageFileError: no series or several, colour, multi-frame files, several slices at one place (a slice sent twice or a dynamic
            series), missing slices, slices of different size or orientation, or a file that cannot be read.
    """
    with itk_silent():
        slices = _one_series(folder, _read_tags(folder))
        for piece in slices:
            _require_grey_slice(piece)
        if len(slices) > 1:
            slices, affine = _sorted_slices(folder, slices)
        else:
            affine = _affine_of_one(slices[0])
        arrays = [_voxels(piece) for piece in slices]
    shapes = Counter(array.shape for array in arrays)
    if len(shapes) > 1:
        raise ImageFileError(f"{folder}: the slices differ in size, {_listed(shapes)}; give a folder with one size")
    suffix = suffix_of(folder) if folder.is_file() else ""
    return Picture(folder, suffix, np.stack(arrays, axis=-1)[None], affine=LPS_TO_RAS @ affine)


def _read_tags(folder: Path) -> list[_Slice]:
    import itk

    slices = []
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    for path in (file for file in files if file.is_file() and file.name.upper() != "DICOMDIR"):
        content = itk.GDCMImageIO.New()
        if not content.CanReadFile(str(path)):
            if path.suffix.lower() in DICOM_SUFFIXES:
                raise ImageFileError(f"{path}: corrupt or truncated, no DICOM file by its content")
            continue
        content.SetFileName(str(path))
        try:
            content.ReadImageInformation()
        except RuntimeError as error:
            raise ImageFileError(
                f"{path}: a DICOM file without an image that ITK can read ({one_line(error)}); give a folder with the slices alone"
            ) from error
        tags = content.GetMetaDataDictionary()
        slices.append(_Slice(path, {tag: str(tags[tag]) for tag in TAGS if tags.HasKey(tag)}))
    return slices


def _one_series(folder: Path, slices: list[_Slice]) -> list[_Slice]:
    series: dict[str, list[_Slice]] = defaultdict(list)
    for piece in slices:
        series[piece.text(SERIES)].append(piece)
    if not series:
        raise ImageFileError(f"{folder}: no DICOM series" if folder.is_file() else f"{folder}: the folder holds no DICOM series")
    if len(series) > 1:
        names = [
            f"{pieces[0].text(SERIES_NUMBER) or '?'} '{pieces[0].text(SERIES_TEXT)}' ({len(pieces)} files, e.g. {pieces[0].path.name})"
            for pieces in series.values()
        ]
        raise ImageFileError(f"{folder}: the folder holds {len(series)} DICOM series, {'; '.join(names)}; give a folder with one")
    return slices


def _require_grey_slice(piece: _Slice) -> None:
    modality, colour = piece.text(MODALITY), piece.text(COLOURS)
    frames = piece.numbers(FRAMES, 1)
    if modality == "SEG":
        raise ImageFileError(f"{piece.path}: a DICOM segmentation; convert it to NIfTI first, e.g. with dcmqi's segimage2itkimage")
    if frames is not None and frames[0] > 1:
        raise ImageFileError(
            f"{piece.path}: a multi-frame DICOM file ({int(frames[0])} frames), whose frames may differ in position and scaling; convert "
            "it to NIfTI first, e.g. with dcm2niix"
        )
    if colour not in GREY:
        raise ImageFileError(f"{piece.path}: a colour DICOM file ({colour or 'unknown colours'}); save it as PNG first")


def _sorted_slices(folder: Path, slices: list[_Slice]) -> tuple[list[_Slice], NDArray[np.float64]]:
    """The slices along their normal, and the affine (4, 4) from column, row and slice index to LPS mm."""
    geometry = []
    for piece in slices:
        cosines, position, spacing = piece.numbers(COSINES, 6), piece.numbers(POSITION, 3), piece.numbers(SPACING, 2)
        if cosines is None or position is None or spacing is None:
            raise ImageFileError(f"{piece.path}: a slice without position, orientation or pixel spacing; a volume needs all three")
        geometry.append((cosines, position, spacing))
    cosines, spacing = geometry[0][0], geometry[0][2]
    for piece, (other_cosines, _, other_spacing) in zip(slices, geometry, strict=True):
        if np.abs(other_cosines - cosines).max() > COSINE_TOLERANCE or not np.allclose(other_spacing, spacing, rtol=COSINE_TOLERANCE):
            raise ImageFileError(
                f"{piece.path}: another orientation or pixel spacing than {slices[0].path.name}; give a folder with the slices of one stack"
            )
    positions = np.array([position for _, position, _ in geometry])
    heights = positions @ np.cross(cosines[:3], cosines[3:])
    order = np.argsort(heights, kind="stable")
    positions, steps = positions[order], np.diff(heights[order])
    repeated = int((steps < SAME_PLACE_MM).sum())
    if repeated:
        raise ImageFileError(
            f"{folder}: {repeated} of {len(slices)} slices are at the place of another one: slices sent twice, or a series over time; give "
            "a folder with one slice per place"
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    apart_mm = max(
        float(np.abs(steps - np.median(steps)).max()),
        float(np.linalg.norm(positions - (positions[0] + np.arange(len(slices))[:, None] * step), axis=1).max()),
    )
    if apart_mm > SLICE_TOLERANCE_MM:
        raise ImageFileError(
            f"{folder}: slices of the DICOM series are missing or unevenly spaced (by {apart_mm:.3g} mm); give the whole series, or "
            "resample it first"
        )
    return [slices[index] for index in order], _affine(cosines, spacing, step, positions[0])


def _affine_of_one(piece: _Slice) -> NDArray[np.float64]:
    """Affine of a single slice; its thickness is the step, and 1 mm stands for what a photograph or X-ray does not tell."""
    cosines = piece.numbers(COSINES, 6)
    if cosines is None:
        cosines = np.array([1.0, 0, 0, 0, 1, 0])
    position, spacing, thickness = piece.numbers(POSITION, 3), piece.numbers(SPACING, 2), piece.numbers(THICKNESS, 1)
    step_mm = 1.0 if thickness is None or thickness[0] <= 0 else float(thickness[0])
    step = np.cross(cosines[:3], cosines[3:]) * step_mm
    return _affine(cosines, np.ones(2) if spacing is None else spacing, step, np.zeros(3) if position is None else position)


def _affine(
    cosines: NDArray[np.float64], spacing: NDArray[np.float64], step: NDArray[np.float64], origin: NDArray[np.float64]
) -> NDArray[np.float64]:
    affine = np.eye(4)
    # the pixel spacing is that between rows, then that between columns
    affine[:3] = np.column_stack([cosines[:3] * spacing[1], cosines[3:] * spacing[0], step, origin])
    return affine


def _voxels(piece: _Slice) -> NDArray[Any]:
    """(columns, rows) of one slice, rescaled by its own slope and intercept; a series reader takes the type of the first slice for all."""
    import itk

    try:
        array: NDArray[Any] = itk.array_from_image(itk.imread(str(piece.path)))
    except (RuntimeError, TypeError, KeyError) as error:
        raise ImageFileError(f"{piece.path}: corrupt or truncated, the DICOM slice cannot be read ({one_line(error)})") from error
    return array.reshape(array.shape[-2:]).T


def _listed(shapes: Counter[tuple[int, ...]]) -> str:
    return ", ".join(f"{count} of {columns} x {rows}" for (columns, rows), count in shapes.items())
