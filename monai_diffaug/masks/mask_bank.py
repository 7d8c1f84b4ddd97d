"""A bank of real lesion masks: read from files, checked, and cut to the outline of the largest piece."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.config.type_definitions import NdarrayOrTensor
from numpy.typing import NDArray

from monai_diffaug.geometry.grids import plain
from monai_diffaug.masks.shapes import largest_component

__all__ = ["checked_bank", "load_mask", "outline_of"]

MOST_NAMES = 20


def checked_bank(bank: Sequence[NdarrayOrTensor | str | Path]) -> list[NDArray[np.bool_] | str | Path]:
    """The masks of a bank, arrays cut to their outlines.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: masks are empty; the message names all of them.
    """
    outlines: list[NDArray[np.bool_] | str | Path] = []
    empty = []
    for index, item in enumerate(bank):
        is_file = isinstance(item, (str, Path))
        if isinstance(item, (str, Path)) and not Path(item).exists():
            raise FileNotFoundError(f"{item}, mask {index} of the bank, does not exist")
        values = load_mask(item) if isinstance(item, (str, Path)) else item
        if not bool((plain(values) > 0).any()):
            empty.append(str(item) if is_file else f"mask {index}")
            continue
        outline = outline_of(values, f"the mask {item}" if is_file else f"mask {index} of the bank")
        outlines.append(item if isinstance(item, (str, Path)) else outline)
    if empty:
        names = ", ".join(empty[:MOST_NAMES]) + (f" and {len(empty) - MOST_NAMES} more" if len(empty) > MOST_NAMES else "")
        raise ValueError(f"{len(empty)} of {len(bank)} masks of the bank are empty, leave them out: {names}")
    return outlines


def load_mask(path: str | Path) -> NdarrayOrTensor:
    """A mask file as MONAI reads it; pictures upright, as for the training of the embedded models, colour pictures thresholded."""
    from monai.data.image_reader import PILReader
    from monai.transforms.io.array import LoadImage

    load = LoadImage(image_only=True)
    load.register(PILReader(reverse_indexing=False))
    values = plain(load(str(path)))
    if values.ndim == 3 and values.shape[-1] in (3, 4):
        grey = values[..., :3].amax(-1)
        return grey > grey.max() / 2
    return values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values


def outline_of(mask: NdarrayOrTensor, name: str = "a mask of the bank") -> NDArray[np.bool_]:
    """The largest component of a mask, cropped to its bounding box: (h, w) bool."""
    values = plain(mask).cpu().numpy()
    flat = values.reshape(values.shape[-2:]) if values.ndim == 3 and values.shape[0] == 1 else values
    if flat.ndim != 2:
        raise ValueError(f"{name} must be (H, W) or (1, H, W), got {tuple(values.shape)}")
    if not (flat > 0).any():
        raise ValueError(f"{name} is empty; leave it out")
    part = largest_component(flat > 0)
    rows, columns = np.nonzero(part)
    return part[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].copy()
