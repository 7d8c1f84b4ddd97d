"""Read the image and the label of one datalist entry, with MONAI's ``LoadImage``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.training.datalist import ANY_VALUE, Entry, mask_of
from monai_diffaug.training.run_settings import TrainingInputError

__all__ = ["LabelledImage", "read_entry"]

AFFINE_TOLERANCE_MM = 1e-2
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
        TrainingInputError: a file cannot be read, is no 2-D or 3-D image, or has voxels that are not finite.
        GridMismatchError: image and label are on different grids.
    """
    image_reader, label_reader = _readers()
    image = _read(image_reader, entry.image, "image")
    if image.shape[0] not in (1, 3):
        raise TrainingInputError(f"image {entry.image} has {image.shape[0]} channels; give 1 (grey) or 3 (colour)")
    values = _numbers(image)
    _require_finite(values, f"image {entry.image}")
    ids = torch.zeros_like(values[:1], dtype=torch.int64) if entry.label is None else _ids(entry, label_reader, image)
    return LabelledImage(entry, values, ids, np.asarray(image.affine) if values.ndim == 4 else None)


@lru_cache(maxsize=1)
def _readers() -> tuple[Any, Any]:
    """One ``LoadImage`` for images and one for labels."""
    from monai_diffaug.files.upright_pictures import class_ids, visible_colours

    return _reader(visible_colours), _reader(class_ids)


def _reader(converter: Callable[[Any], Any]) -> Any:
    """``LoadImage`` that keeps the stored type and reads pictures rows first."""
    from monai.transforms.io.array import LoadImage

    from monai_diffaug.files.upright_pictures import UprightPictureReader

    load = LoadImage(image_only=True, ensure_channel_first=True, dtype=None)
    load.register(UprightPictureReader(converter))
    return load


def _read(load: Any, file: Path, role: str) -> Any:
    try:
        with warnings.catch_warnings():
            # PIL's array is read-only; it is not written to here
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            volume = load(file)
    except Exception as error:  # every reader raises other errors
        reason = str(error).strip().splitlines()
        raise TrainingInputError(f"{role} {file} cannot be read: {reason[0] if reason else type(error).__name__}") from error
    while volume.ndim > 3 and volume.shape[-1] == 1 and volume.ndim != 4:
        volume = volume[..., 0]
    if volume.ndim not in (3, 4) or 0 in volume.shape:
        raise TrainingInputError(f"{role} {file} must be one 2-D or 3-D image, got shape {tuple(volume.shape)} with the channel first")
    return volume


def _ids(entry: Entry, load: Any, image: Any) -> Tensor:
    label = _read(load, entry.label or entry.image, "label")
    if tuple(label.shape[1:]) != tuple(image.shape[1:]):
        raise GridMismatchError(
            f"label {entry.label} {tuple(label.shape[1:])} is not on the grid of image {entry.image} {tuple(image.shape[1:])}; "
            "resample it first, e.g. with MONAI's ResampleToMatchd"
        )
    if label.ndim == 4 and label.shape[0] > 1:
        raise TrainingInputError(
            f"label {entry.label} has {label.shape[0]} channels; give one with class ids, e.g. the argmax of one channel a class"
        )
    if image.ndim == 4 and not np.allclose(np.asarray(label.affine), np.asarray(image.affine), atol=AFFINE_TOLERANCE_MM):
        raise GridMismatchError(
            f"label {entry.label} has the shape of image {entry.image} but another affine; resample it first, e.g. with ResampleToMatchd"
        )
    ids: Tensor = _numbers(label).amax(0, keepdim=True)  # a colour picture of a mask counts where any channel is set
    _require_finite(ids, f"label {entry.label}")
    if set(entry.findings) == {ANY_VALUE} and str(entry.label).lower().endswith(LOSSY_SUFFIXES):
        return (2 * ids.int() > int(ids.max())).to(torch.int64)  # the compression leaves faint specks around the outline
    return ids.round().to(torch.int64)


def _require_finite(values: Tensor, name: str) -> None:
    if values.dtype.is_floating_point and not bool(torch.isfinite(values).all()):
        raise TrainingInputError(f"{name} has non-finite voxels; replace them first, e.g. by numpy.nan_to_num")


def _numbers(image: Any) -> Tensor:
    """A plain tensor in a type that torch computes with."""
    tensor: Tensor = image.as_tensor() if hasattr(image, "as_tensor") else torch.as_tensor(image)
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8)
    return tensor.to(torch.int64) if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor
