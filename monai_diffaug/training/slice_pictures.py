"""The images of a datalist as 2-D pictures of 8 bits with their findings: for studies, and for networks that train on whole pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.geometry.slices import slice_plane, to_slices
from monai_diffaug.geometry.window import window_of
from monai_diffaug.training.datalist import Entry, read_datalist
from monai_diffaug.training.read_entry import read_entry

__all__ = ["SlicePicture", "picture_items", "pictures_of"]

MIN_AREA_PX = 12  # a slice of a volume is used where a finding has as many pixels
MAX_SLICES = 32  # per volume, evenly spread: neighbouring slices are nearly the same


class SlicePicture(NamedTuple):
    """One picture, or one slice of a volume.

    Attributes:
        image: (C, H, W) uint8, C 1 or 3.
        findings: word and mask (H, W) of each finding.
        labelled: (H, W), everything that is labelled.
        position: index of the slice; None for a picture.
    """

    image: Tensor
    findings: tuple[tuple[str, NDArray[np.bool_]], ...]
    labelled: NDArray[np.bool_]
    position: int | None


def pictures_of(entry: Entry, *, plane: str = "axial", window: tuple[float, float] | None = None) -> Iterator[SlicePicture]:
    """The picture of an entry, or the slices of its volume that show a finding; of a volume without findings, slices spread over it.

    Args:
        entry: of the datalist.
        plane: in which a volume is sliced.
        window: intensities that become 0 to 255; None takes the default, see ``window_of``. 8-bit pictures stay as they are.

    Raises:
        TrainingInputError: a file cannot be read.
        GridMismatchError: image and label are on different grids.
    """
    content = read_entry(entry)
    cut = slice_plane(content.affine, plane, content.image.ndim - 1)
    words = entry.prompt or f"{entry.modality} of {entry.anatomy}"
    slices, labelled = to_slices(_in_8_bits(content.image, window, words), cut), to_slices(content.ids, cut)[:, 0].numpy() > 0
    masks = [(word, to_slices(mask, cut)[:, 0].numpy()) for word, mask in content.masks()]
    chosen = [i for i in range(len(slices)) if not masks or cut is None or max(int(mask[i].sum()) for _, mask in masks) >= MIN_AREA_PX]
    for i in chosen[:: -(-len(chosen) // MAX_SLICES) or 1]:
        findings = tuple((word, mask[i]) for word, mask in masks if mask[i].any())
        yield SlicePicture(slices[i].contiguous(), findings, labelled[i], None if cut is None else i)


def _in_8_bits(image: Tensor, window: tuple[float, float] | None, words: str) -> Tensor:
    if image.dtype == torch.uint8 and window is None:
        return image
    return ((window_of(image, window, words).to_model(image) + 1) * 127.5).round().to(torch.uint8)


def picture_items(
    data: str,
    section: str,
    *,
    limit: int | None = None,
    plane: str = "axial",
    window: tuple[float, float] | None = None,
    labels: bool = True,
) -> list[dict[str, Any]]:
    """All pictures of a list as items of a MONAI data set, in memory: for a network that segments whatever is labelled.

    Args:
        data: the datalist, a JSON file as ``read_datalist`` reads it.
        section: "training" or "validation".
        limit: number of entries, spread evenly over the list; None takes all.
        plane, window: as for ``pictures_of``.
        labels: give the labels too.

    Returns:
        One dict per picture: "image" (1, H, W) uint8, the mean of the channels, and "label" (1, H, W) uint8, 1 where a finding is. Both are
        MetaTensors whose "filename_or_obj" names the file, for ``SaveImaged`` and ``MetricsSaver``.

    Raises:
        TrainingInputError: the datalist or a file of it cannot be read.
        ValueError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, or None for all images, got {limit}")
    entries, folder = read_datalist(data, section=section), Path(data).parent
    if limit is not None and limit < len(entries):
        entries = [entries[i] for i in np.linspace(0, len(entries) - 1, limit).astype(int)]
    items = []
    for entry in entries:
        file = entry.image.relative_to(folder) if entry.image.is_relative_to(folder) else entry.image
        name = "_".join(part for part in file.parts if part != file.anchor)
        for picture in pictures_of(entry, plane=plane, window=window):
            grey = picture.image.float().mean(0, keepdim=True).round().to(torch.uint8)
            label = np.any([mask for _, mask in picture.findings] or [np.zeros_like(picture.labelled)], axis=0)
            meta = {"filename_or_obj": name if picture.position is None else f"{name.partition('.')[0]}_slice{picture.position:03d}.png"}
            tensors = {"image": grey, **({"label": torch.from_numpy(label[None].astype(np.uint8))} if labels else {})}
            items.append({key: MetaTensor(tensor, meta=dict(meta)) for key, tensor in tensors.items()})
    return items
