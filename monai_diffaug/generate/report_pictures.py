"""Small pictures of a result for the report: original, outlined mask, result, difference; of a volume one row per plane."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture import Picture, require_same_grid
from monai_diffaug.files.preview import CAPTION_PX, GAP_PX, PANEL_PX, draw_preview

__all__ = ["data_url", "strip_of"]

PLANES = ("axial", "coronal", "sagittal")
COLUMNS, LINE_PX = 4, 3


def strip_of(
    original: Path, result: Path, mask: Path, *, window: tuple[float, float] | None = None, panel_px: int = 128, zoom: float | None = None
) -> Image.Image:
    """The four panels of a result side by side; of a volume the middle slice of the mask in three planes.

    Args:
        original, result, mask: files on one grid.
        window: lowest and highest displayed intensity; None as ``window_of``.
        panel_px: side of a panel.
        zoom: side of the displayed square in sides of the mask; None displays whole slices.

    Raises:
        ImageFileError: a file cannot be read.
        GridMismatchError: the files are on different grids.
    """
    before, after, region = (read_picture(path, layers=role == "mask") for role, path in (("o", original), ("r", result), ("mask", mask)))
    for other, role in ((before, "original"), (region, "mask")):
        require_same_grid(after, other, role)
    planes = PLANES if len(after.shape) == 3 else PLANES[:1]
    rows = [_row(before, after, region, plane, window, panel_px, zoom) for plane in planes]
    height = sum(row.height for row in rows) + (len(rows) - 1) * LINE_PX
    strip = Image.new("RGB", (COLUMNS * panel_px, height), "white")
    top = 0
    for row in rows:
        strip.paste(row, (0, top))
        top += row.height + LINE_PX
    pen = ImageDraw.Draw(strip)
    for column in range(1, COLUMNS):
        pen.line((column * panel_px, 0, column * panel_px, strip.height), fill="white", width=LINE_PX)
    return strip


def _row(
    before: Picture, after: Picture, mask: Picture, plane: str, window: tuple[float, float] | None, panel_px: int, zoom: float | None
) -> Image.Image:
    """The panels of one slice without the black bars that make them square."""
    picture = draw_preview(
        _display(before),
        _display(after),
        mask=(mask.stored != 0).any(axis=0, keepdims=True),
        affine=after.affine,
        plane=plane,
        window=window,
        rows=1,
        zoom=zoom,
    )
    lefts = [GAP_PX + column * (PANEL_PX + GAP_PX) for column in range(COLUMNS)]
    panels = [picture.crop((left, CAPTION_PX, left + PANEL_PX, CAPTION_PX + PANEL_PX)) for left in lefts]
    box = panels[-1].getbbox() or (0, 0, PANEL_PX, PANEL_PX)  # no change is white in the difference, and the bars are black
    width, height = ((box[k + 2] - box[k]) * panel_px / PANEL_PX for k in (0, 1))
    row = Image.new("RGB", (COLUMNS * panel_px, max(round(height), 1)))
    for column, panel in enumerate(panels):
        tile = panel.crop(box).resize((max(round(width), 1), row.height), Image.Resampling.LANCZOS)
        row.paste(tile, (column * panel_px + (panel_px - tile.width) // 2, 0))
    return row


def _display(picture: Picture) -> NDArray[Any]:
    """Values for the preview; 8-bit pictures keep their type, whose window is 0 to 255."""
    is_plain = picture.stored.dtype == np.uint8 and picture.slope == 1.0 and picture.inter == 0.0
    return picture.stored.copy() if is_plain else picture.values


def data_url(picture: Image.Image) -> str:
    """The picture inside a page: JPEG as base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
