"""Read PNG, JPEG, BMP and TIFF as people see them: rows first, turned by the orientation tag, in the type of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.errors import one_line
from monai_diffaug.files.picture import ImageFileError, Picture

__all__ = ["class_ids", "read_pixels", "visible_colours"]

WITHOUT_ALPHA = {"LA": "L", "RGBA": "RGB"}
TO_COLOUR = {**WITHOUT_ALPHA, "1": "L", "P": "RGB", "PA": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB"}
GREY_OR_RGB = ("L", "RGB", "I;16", "I;16B", "I", "F")
TIFF_BITS = 258  # tag of the bits per channel


def visible_colours(picture: Any) -> Any:
    """Convert a PIL picture of another colour model, or with transparency, to grey or RGB."""
    return picture.convert(TO_COLOUR[picture.mode]) if picture.mode in TO_COLOUR else picture


def class_ids(picture: Any) -> Any:
    """Drop the transparency of a PIL picture, which is no class; a palette's indices are the ids."""
    return picture.convert(WITHOUT_ALPHA[picture.mode]) if picture.mode in WITHOUT_ALPHA else picture


def read_pixels(path: Path, suffix: str, convert: Callable[[Any], Any] | None = None) -> Picture:
    """Read one picture.

    Args:
        path, suffix: of the file.
        convert: ``visible_colours`` or ``class_ids``; None refuses what a written result could not hold: palettes and transparency.

    Raises:
        ImageFileError: corrupt or truncated, several pages, a refused colour model, or 16-bit colour, of which Pillow reads 8 bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pages, bits = int(getattr(image, "n_frames", 1)), _bits(path, suffix, image)
            upright = ImageOps.exif_transpose(image)  # the result has no orientation tag
            picture = upright if convert is None else convert(upright)
            array: NDArray[Any] = np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageFileError(f"{path}: corrupt or truncated image ({one_line(error)})") from error
    if pages > 1:
        raise ImageFileError(f"{path}: {pages} pages; save one page per file, or the volume as NIfTI")
    if convert is None and picture.mode not in GREY_OR_RGB:
        raise ImageFileError(f"{path}: a picture of mode {picture.mode}; save it as grey or RGB without alpha or palette first")
    if bits == 16 and picture.mode == "RGB":
        raise ImageFileError(
            f"{path}: a colour picture of 16 bits per channel, of which Pillow reads 8; save it as .mha or .nrrd, or with 8 bits"
        )
    if picture.mode == "I" and suffix == ".png":  # a 16-bit PNG in older versions of Pillow
        array = array.astype(np.uint16)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return Picture(path, suffix, array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _bits(path: Path, suffix: str, image: Any) -> int:
    """Bits per channel by the header of the file; Pillow gives 16-bit colour as 8-bit without a word."""
    if suffix == ".png":
        with path.open("rb") as file:
            return file.read(25)[-1]
    bits = getattr(image, "tag_v2", {}).get(TIFF_BITS, 8)
    return max(bits) if isinstance(bits, tuple) else int(bits)
