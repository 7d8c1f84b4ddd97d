"""Preview of an edit: original, mask, result and signed difference, one row per slice or per anatomical plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.geometry.slices import PLANES, slice_plane, slice_spacing_mm, to_slices
from monai_diffaug.geometry.window import window_of

__all__ = ["draw_preview", "save_preview", "slices_of"]

PANEL_PX = 256
GAP_PX = 6
CAPTION_PX = 22
MASK_RGB = (255, 196, 0)
TITLES = ("original", "mask", "result", "difference")


class _Row(NamedTuple):
    """One slice: (C, h, w) before and after, (h, w) mask, its name, and the (row, column) distances in mm."""

    before: NDArray[Any]
    after: NDArray[Any]
    mask: NDArray[np.bool_]
    name: str
    pixel_mm: tuple[float, float]


def slices_of(image: NDArray[Any], affine: NDArray[np.float64] | None, plane: str) -> NDArray[Any]:
    """Slices (S, C, h, w) of an image (C, H, W[, D]), in the orientation of the model's input.

    Raises:
        ValueError: unknown plane.

    >>> slices_of(np.zeros((1, 4, 5, 6)), None, "axial").shape
    (6, 1, 5, 4)
    """
    spatial = slice_plane(affine, plane, image.ndim - 1)
    return to_slices(torch.from_numpy(np.require(image, requirements=("C", "W"))), spatial).numpy()  # a mapped file is read-only


def draw_preview(
    original: NDArray[Any],
    result: NDArray[Any],
    *,
    mask: NDArray[Any],
    affine: NDArray[np.float64] | None = None,
    plane: str | None = "axial",
    window: tuple[float, float] | None = None,
    caption: str = "",
    rows: int = 3,
    zoom: float | None = 3.0,
) -> Image.Image:
    """Panels of slices with a mask: original, outline of the mask, result, difference (red: brighter, blue: darker).

    Args:
        original: (C, H, W[, D]), C = 1 or 3.
        result: same shape and unit.
        mask: (1, H, W[, D]), non-zero inside the repainted region.
        affine: (4, 4) voxel to RAS; None for a photograph.
        plane: slicing plane of a volume; None shows one slice of each of the three planes, through the middle of the mask.
        window: (low, high) in the image's unit; None means the models' default, see ``window_of``.
        caption: one line under the panels.
        rows: maximum number of slices of a plane, evenly spread over the mask.
        zoom: side of the displayed square, in sides of the mask's bounding box; None displays whole slices.

    >>> image = np.zeros((1, 32, 32))
    >>> draw_preview(image, image + 1, mask=np.ones((1, 32, 32))).size
    (1054, 290)
    """
    arrays = [np.asarray(array) for array in (original, result, mask)]
    in_three = plane is None and arrays[0].ndim == 4
    slices = [row for each in (PLANES if in_three else (plane or "axial",)) for row in _rows(arrays, affine, each, 1 if in_three else rows)]
    display = window_of(torch.from_numpy(np.array(original)), window)
    changes = [(row.after.astype(np.float64) - row.before.astype(np.float64)).mean(axis=0) for row in slices]
    largest = max(max(float(np.abs(change).max()) for change in changes), 1e-12)
    shared = None if in_three else _view(np.any([row.mask for row in slices], axis=0), zoom)

    height = len(slices) * (PANEL_PX + GAP_PX) + GAP_PX + CAPTION_PX * (2 if caption else 1)
    canvas = Image.new("RGB", (len(TITLES) * (PANEL_PX + GAP_PX) + GAP_PX, height), "black")
    pen, font = ImageDraw.Draw(canvas), _font(13)
    for column, title in enumerate(TITLES):
        if title == "difference":
            title = f"difference  red +{largest:.3g}  blue -{largest:.3g}"
        pen.text((GAP_PX + column * (PANEL_PX + GAP_PX), 3), title, fill="white", font=font)
    for number, (row, change) in enumerate(zip(slices, changes, strict=True)):
        view = _view(row.mask, zoom) if shared is None else shared
        grey = _grey(row.before, display.low, display.high)
        panels = (grey, grey, _grey(row.after, display.low, display.high), _diverging(change / largest))
        top = CAPTION_PX + number * (PANEL_PX + GAP_PX)
        for column, panel in enumerate(panels):
            tile = _tile(panel[view], row.pixel_mm, nearest=False)
            if column == 1:
                tile = _outlined(tile, _tile((row.mask * np.uint8(255))[view], row.pixel_mm, nearest=True))
            canvas.paste(tile, (GAP_PX + column * (PANEL_PX + GAP_PX), top))
        if arrays[0].ndim == 4:
            pen.text((GAP_PX + 4, top + PANEL_PX - 18), row.name, fill="white", font=font)
    if caption:
        pen.text((GAP_PX, height - CAPTION_PX), caption, fill="white", font=font)
    return canvas


def _rows(arrays: list[NDArray[Any]], affine: NDArray[np.float64] | None, plane: str, count: int) -> list[_Row]:
    """Slices of one plane, evenly spread over the mask."""
    before, after, masks = (slices_of(array, affine, plane) for array in arrays)
    masks = (masks != 0).any(axis=1)
    touched = np.flatnonzero(masks.any(axis=(1, 2)))
    if touched.size == 0:
        touched = np.array([len(masks) // 2])
    count = min(count, touched.size)
    # centres of equal parts, without the thin first and last slices of a lesion
    indices = touched[((np.arange(count) + 0.5) * touched.size / count).astype(int)]
    _, row_mm, column_mm = slice_spacing_mm(affine, slice_plane(affine, plane, arrays[0].ndim - 1))
    return [_Row(before[i], after[i], masks[i], f"{plane}, slice {i}", (row_mm, column_mm)) for i in indices]


def save_preview(path: Path, preview: Image.Image) -> None:
    """Write the preview; an interrupted write leaves no file."""
    with whole_file(path) as part:
        preview.save(part)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _view(touched_hw: NDArray[np.bool_], zoom: float | None) -> tuple[slice, slice]:
    height, width = touched_hw.shape
    if zoom is None or not touched_hw.any():
        return slice(0, height), slice(0, width)
    ys, xs = np.nonzero(touched_hw)
    side = int(np.ceil(zoom * (max(np.ptp(ys), np.ptp(xs)) + 1)))
    side_h, side_w = min(side, height), min(side, width)
    top = int(np.clip((ys.min() + ys.max() + 1 - side_h) // 2, 0, height - side_h))
    left = int(np.clip((xs.min() + xs.max() + 1 - side_w) // 2, 0, width - side_w))
    return slice(top, top + side_h), slice(left, left + side_w)


def _grey(slice_chw: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """(h, w, 3) display values from 0 to 255."""
    unit = np.clip((slice_chw.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    if unit.shape[0] == 1:
        unit = np.repeat(unit, 3, axis=0)
    pixels: NDArray[np.uint8] = np.rint(unit * 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels


def _diverging(change_hw: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(h, w, 3): white for no change, red for brighter, blue for darker; input in [-1, 1]."""
    up, down = np.clip(change_hw, 0, 1), np.clip(-change_hw, 0, 1)
    rgb = np.stack([1 - down, 1 - np.maximum(up, down), 1 - up], axis=-1)
    pixels: NDArray[np.uint8] = np.rint(rgb * 255).astype(np.uint8)
    return pixels


def _tile(panel: NDArray[np.uint8], pixel_mm: tuple[float, float], *, nearest: bool) -> Image.Image:
    """The panel scaled to PANEL_PX per side, with its aspect ratio in mm."""
    image = Image.fromarray(np.ascontiguousarray(panel))
    height_mm, width_mm = image.height * pixel_mm[0], image.width * pixel_mm[1]
    scale = PANEL_PX / max(height_mm, width_mm)
    size = (max(round(width_mm * scale), 1), max(round(height_mm * scale), 1))
    image = image.resize(size, Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC)
    tile = Image.new(image.mode, (PANEL_PX, PANEL_PX))
    tile.paste(image, ((PANEL_PX - size[0]) // 2, (PANEL_PX - size[1]) // 2))
    return tile


def _outlined(tile: Image.Image, mask_tile: Image.Image) -> Image.Image:
    pixels, inside = np.array(tile), np.array(mask_tile) > 0
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & inside
    pixels[inside] = np.rint(0.8 * pixels[inside] + 0.2 * np.array(MASK_RGB)).astype(np.uint8)
    pixels[inside & ~core] = MASK_RGB
    return Image.fromarray(pixels)
