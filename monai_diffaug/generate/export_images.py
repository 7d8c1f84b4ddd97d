"""Image files that leave the package: their layout by the header, one file per channel, and pictures as NIfTI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.errors import one_line
from monai_diffaug.files.image_file import read_picture, write_picture
from monai_diffaug.files.picture import NIFTI_SUFFIXES, ImageFileError, Picture, suffix_of
from monai_diffaug.files.upright_pictures import visible_colours
from monai_diffaug.generate.export_cases import ExportError

__all__ = [
    "PICTURE",
    "VOLUME",
    "Layout",
    "blank_label",
    "is_plain_png",
    "layout_of",
    "read_channels",
    "write_channels",
    "write_nifti_array",
    "write_nifti_ids",
]

PICTURE, VOLUME = ".png", ".nii.gz"
PLAIN_MODES = {"L": 1, "I;16": 1, "I;16B": 1, "I": 1, "RGB": 3}
EXIF_ORIENTATION = 0x0112
LPS_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # columns to the left of the patient, rows down, as ITK reads a picture


@dataclass(frozen=True)
class Layout:
    """How a case's image is stored.

    Attributes:
        ending: ".png" for pictures, ".nii.gz" for volumes.
        channels: over all files.
        is_plain: other programs read the files as this package does, without a conversion.
    """

    ending: str
    channels: int
    is_plain: bool


def layout_of(images: Sequence[Path]) -> Layout:
    """Layout of an image of one file, or of one file per channel; PNG and NIfTI are not read beyond their headers.

    Raises:
        ImageFileError: a file cannot be read.
        ExportError: pictures and volumes in one case.
    """
    layouts = [_layout_of_file(path) for path in images]
    if len({layout.ending for layout in layouts}) > 1:
        raise ExportError(f"{', '.join(map(str, images))}: pictures and volumes cannot be channels of one image")
    plain = all(layout.is_plain for layout in layouts) and (len(layouts) == 1 or all(layout.channels == 1 for layout in layouts))
    return Layout(layouts[0].ending, sum(layout.channels for layout in layouts), plain)


def is_plain_png(path: Path) -> bool:
    """True for an upright grey or RGB PNG: no palette, no transparency, no orientation tag."""
    from PIL import Image

    with Image.open(path) as image:
        return image.mode in PLAIN_MODES and image.getexif().get(EXIF_ORIENTATION, 1) == 1


def _layout_of_file(path: Path) -> Layout:
    suffix = suffix_of(path)
    try:
        if suffix == PICTURE and is_plain_png(path):
            from PIL import Image

            with Image.open(path) as image:
                return Layout(PICTURE, PLAIN_MODES[image.mode], True)
        if suffix in NIFTI_SUFFIXES:
            import nibabel as nib

            shape = _squeezed(tuple(nib.load(path).shape))
            return Layout(VOLUME, shape[3] if len(shape) == 4 else 1, len(shape) < 4)
    except Exception as error:  # the readers raise errors of different types
        raise ImageFileError(f"{path}: cannot be read ({one_line(error)})") from error
    picture = read_picture(path, layers=True, convert=visible_colours)
    return Layout(VOLUME if picture.affine is not None else PICTURE, picture.stored.shape[0], False)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def read_channels(images: Sequence[Path]) -> list[Picture]:
    """Each channel of an image as a picture of one channel (1, H, W[, D]).

    A NIfTI file with four axes has its channels last.

    Raises:
        ImageFileError: a file cannot be read.
        ExportError: the files are on different grids.
    """
    channels: list[Picture] = []
    for path in images:
        if suffix_of(path) in NIFTI_SUFFIXES and _layout_of_file(path).channels > 1:
            channels += _nifti_channels(path)
        else:
            picture = read_picture(path, layers=True, convert=visible_colours)
            if picture.stored.shape[0] > 1:  # one of several channels is written without the header of the file
                picture = replace(picture, header=None, suffix="")
            channels += [replace(picture, stored=channel[None]) for channel in picture.stored]
    if len({channel.shape for channel in channels}) > 1:
        shapes = ", ".join(str(channel.shape) for channel in channels)
        raise ExportError(f"{', '.join(map(str, images))}: the channels have the shapes {shapes}; resample them to one grid")
    return channels


def _nifti_channels(path: Path) -> list[Picture]:
    import nibabel as nib

    image: Any = nib.load(path)
    stored = np.asarray(image.dataobj.get_unscaled())
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    affine = np.array(image.affine, np.float64)
    return [Picture(path, "", stored[..., k][None], slope, inter, affine) for k in range(stored.shape[3])]


def write_channels(images: Sequence[Path], layout: Layout, stem: Path) -> list[Path]:
    """Write an image as nnU-Net reads it: ``STEM_0000`` and so on, one file per channel; an RGB or grey picture is one PNG.

    Raises:
        ExportError: a picture with a type that PNG does not store.
    """
    channels = read_channels(images)
    if layout.ending == PICTURE:
        for channel in channels:
            if channel.stored.dtype not in (np.uint8, np.uint16):
                raise ExportError(f"{channel.path}: a picture of type {channel.stored.dtype}; save it with 8 or 16 bits per channel")
        if len(channels) == 3 and len(images) == 1:
            rgb = np.concatenate([channel.stored for channel in channels])
            channels = [replace(channels[0], stored=rgb)]
    paths = []
    for number, channel in enumerate(channels):
        paths.append(stem.with_name(f"{stem.name}_{number:04}{layout.ending}"))
        write_picture(channel.stored, channel, paths[-1], as_stored=True)
    return paths


def blank_label(images: Sequence[Path]) -> tuple[NDArray[np.int64], Picture]:
    """Class ids of background only on the grid of an image, and the image."""
    channel = read_channels(images)[0]
    return np.zeros(channel.stored.shape, np.int64), channel


def write_nifti_array(channels: Sequence[Picture], path: Path, *, dtype: Any = None) -> None:
    """Write channels as one NIfTI file, several of them along a fourth axis; a picture is a volume of one slice with 1 mm pixels.

    Args:
        channels: pictures of one channel on one grid.
        path: ``.nii.gz``.
        dtype: stored type; None keeps that of the file, or float32 where values are scaled.
    """
    import nibabel as nib

    from monai_diffaug.files.whole_file import whole_file

    first = channels[0]
    scaled = any(channel.slope != 1.0 or channel.inter != 0.0 for channel in channels)
    arrays = [(channel.values if scaled else channel.stored)[0] for channel in channels]
    affine = first.affine
    if affine is None or arrays[0].ndim == 2:
        is_picture = affine is None
        arrays = [(array.T if is_picture else array)[..., None] for array in arrays]  # the first axis of NIfTI is x
        affine = LPS_AFFINE if affine is None else affine
    stacked = arrays[0] if len(arrays) == 1 else np.stack(arrays, -1)
    image = nib.Nifti1Image(stacked.astype(dtype or stacked.dtype), affine)
    image.header.set_xyzt_units("mm", "unknown")
    with whole_file(path) as part:
        nib.save(image, part)


def write_nifti_ids(ids: NDArray[np.int64], like: Picture, path: Path) -> None:
    """Write class ids (1, H, W[, D]) on the grid of an image or label, without scaling, in the smallest unsigned type."""
    largest = int(ids.max(initial=0))
    dtype = np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.int32
    write_nifti_array([replace(like, stored=ids, slope=1.0, inter=0.0)], path, dtype=dtype)
