"""Read the image and the label of one datalist entry with the readers that the commands use that edit (``files.image_file``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture import ImageFileError, Picture, require_same_grid
from monai_diffaug.files.upright_pictures import class_ids, visible_colours
from monai_diffaug.geometry.grids import plain
from monai_diffaug.masks.label_file import ids_of_file
from monai_diffaug.training.datalist import ANY_VALUE, Entry, mask_of
from monai_diffaug.training.run_settings import TrainingInputError

__all__ = ["LabelledImage", "read_entry"]

LOSSY_SUFFIXES = (".jpg", ".jpeg")


class LabelledImage(NamedTuple):
    """The content of an entry's files."""

    entry: Entry
    image: Tensor  # (C, h, w[, d]), C = 1 or 3, the numbers of the file in their type; pictures have rows first
    ids: Tensor  # (1, h, w[, d]) int64 class ids; zeros where the entry has no label
    affine: NDArray[np.float64] | None  # (4, 4) voxel to RAS of a 3-D image, None of a 2-D one

    def masks(self) -> Iterator[tuple[str, Tensor]]:
        """Each finding that the label shows, with its mask (1, h, w[, d]) bool."""
        for values, finding in self.entry.findings.items():
            mask = mask_of(self.ids, values)
            if bool(mask.any()):
                yield finding, mask


def read_entry(entry: Entry) -> LabelledImage:
    """Read image and label of an entry of ``read_datalist``.

    Raises:
        TrainingInputError: a file cannot be read, is no 2-D or 3-D image, has voxels that are not finite, or class ids that are no whole
            numbers.
        GridMismatchError: image and label are on different grids.
    """
    image = _read(entry.image, "image", visible_colours)
    values = image.stored if image.slope == 1.0 and image.inter == 0.0 else image.values
    volume = plain(torch.from_numpy(np.require(values, requirements="W")))
    ids = torch.zeros_like(volume[:1], dtype=torch.int64) if entry.label is None else _ids(entry, entry.label, image)
    return LabelledImage(entry, volume, ids, image.affine if volume.ndim == 4 else None)


def _read(path: Path, role: str, convert: Callable[[Any], Any]) -> Picture:
    try:
        return read_picture(path, layers=role == "label", convert=convert)
    except ImageFileError as error:
        raise TrainingInputError(f"{role} {error}") from error


def _ids(entry: Entry, path: Path, image: Picture) -> Tensor:
    label = _read(path, "label", class_ids)
    try:
        require_same_grid(image, label, "label")
        ids = torch.from_numpy(ids_of_file(label))
    except GridMismatchError as error:
        raise GridMismatchError(f"{error} (label {path}, image {image.path})") from error
    except ImageFileError as error:
        raise TrainingInputError(str(error)) from error
    if ids.ndim == 4 and ids.shape[0] > 1:
        raise TrainingInputError(
            f"label {path} has {ids.shape[0]} channels; give one with class ids, e.g. the argmax of one channel a class"
        )
    ids = ids.amax(0, keepdim=True)  # a colour picture of a mask counts where any channel is set
    if set(entry.findings) == {ANY_VALUE} and path.name.lower().endswith(LOSSY_SUFFIXES):
        return (2 * ids > int(ids.max())).to(torch.int64)  # the compression leaves faint specks around the outline
    return ids
