"""Read PNG, JPEG, BMP and TIFF in display orientation: rows first, without transparency, palettes as colours or as class ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

from monai.data.image_reader import PILReader
from monai.utils import ensure_tuple

__all__ = ["UprightPictureReader", "class_ids", "visible_colours"]

TIFF_SUFFIXES = (".tif", ".tiff")
WITHOUT_ALPHA = {"LA": "L", "RGBA": "RGB"}
TO_COLOUR = {**WITHOUT_ALPHA, "P": "RGB", "PA": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB"}


def visible_colours(picture: Any) -> Any:
    """Turn a PIL picture as its orientation tag says, and convert one of another colour model to grey or RGB."""
    picture = _turned(picture)
    return picture.convert(TO_COLOUR[picture.mode]) if picture.mode in TO_COLOUR else picture


def class_ids(picture: Any) -> Any:
    """Turn a PIL picture as its orientation tag says, and drop its transparency, which is no class; a palette's indices are the ids."""
    picture = _turned(picture)
    return picture.convert(WITHOUT_ALPHA[picture.mode]) if picture.mode in WITHOUT_ALPHA else picture


def _turned(picture: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


class UprightPictureReader(PILReader):
    """MONAI's ``PILReader`` with rows first, as the embedded models were trained; also for single-page TIFF, which ITK transposes.

    Args:
        converter: ``visible_colours`` for images, ``class_ids`` for labels.
    """

    def __init__(self, converter: Callable[[Any], Any]) -> None:
        super().__init__(converter=converter, reverse_indexing=False)

    def verify_suffix(self, filename: Sequence[PathLike[str] | str] | PathLike[str] | str) -> bool:
        return bool(super().verify_suffix(filename)) or all(_is_tiff_of_one_page(str(name)) for name in ensure_tuple(filename))


def _is_tiff_of_one_page(filename: str) -> bool:
    from PIL import Image

    if not filename.lower().endswith(TIFF_SUFFIXES):
        return False
    try:
        with Image.open(filename) as picture:
            return int(getattr(picture, "n_frames", 1)) == 1
    except OSError:
        return False
