"""Slices to train on: one per lesion, in the anatomical plane, with the intensity window of its image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.geometry.slices import slice_plane, to_slices, touched
from monai_diffaug.geometry.window import Window, window_of
from monai_diffaug.masks.boxes import connected_components
from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.datalist import ANY_VALUE, Entry, mask_of
from monai_diffaug.training.read_entry import LabelledImage, read_entry
from monai_diffaug.training.run_settings import TrainingInputError

__all__ = ["LabelledSlice", "load_slices", "slices_of"]

logger = logging.getLogger(__name__)

MIN_AREA_PX = 12
MAX_SLICES = 32  # per finding and volume, evenly spread: neighbouring slices are nearly the same
MAX_PARTS = 8
MAX_NAMED = 20  # files in one message


@dataclass(frozen=True)
class LabelledSlice:
    """One lesion on one slice, or a slice without a lesion; words, data set and group as in ``Entry``."""

    stored: Tensor  # (C, h, w) numbers of the file, C = 1 or 3, in the smallest type that holds them; shared by the lesions of a slice
    lesion: NDArray[np.bool_]  # (h, w) one connected lesion; empty where there is none
    labelled: NDArray[np.bool_]  # (h, w) everything labelled on the slice; shared too
    finding: str  # of the lesion; "normal tissue", or a finding without an outline, where there is no lesion
    modality: str
    anatomy: str
    prompt: str
    name: str  # file and slice, for messages
    window: Window | None = None  # maps ``stored`` to the model's range; None where ``stored`` is in that range already
    plane: str = ""  # in which a volume was cut; empty for 2-D images
    dataset: str = ""
    group: str = ""

    @property
    def image(self) -> Tensor:
        """(C, h, w) float32 in [-1, 1], computed at each call: float32 copies of all volumes would not fit into memory."""
        return self.stored if self.window is None else self.window.to_model(self.stored)

    @property
    def is_normal(self) -> bool:
        return self.finding == NORMAL

    @property
    def has_lesion(self) -> bool:
        return bool(self.lesion.any())


def load_slices(
    entries: Sequence[Entry], *, plane: str = "axial", window: tuple[float, float] | None = None, progress: bool = False
) -> list[LabelledSlice]:
    """Read images and labels and cut the slices that the labels touch.

    Args:
        entries: of the datalist.
        plane: "axial", "coronal" or "sagittal", from the affine; a 2-D image is one slice.
        window: intensities the model sees, in the image's unit; None takes the default of each image, see ``window_of``.
        progress: show a progress bar.

    Raises:
        TrainingInputError: a file cannot be read, has no lesion, or is no 2-D or 3-D image.
        GridMismatchError: an image and its label are on different grids.
    """
    from tqdm import tqdm

    slices: list[LabelledSlice] = []
    failures: list[tuple[Entry, _NoLesionError]] = []
    for entry in tqdm(entries, desc="reading", disable=not progress):
        try:
            slices += slices_of(read_entry(entry), plane=plane, window=window)
        except _NoLesionError as error:  # reading takes long, so all such files are named at once
            failures.append((entry, error))
    if len(failures) > 1:
        names = ", ".join(str(entry.label) for entry, _ in failures[1 : MAX_NAMED + 1])
        more = f" and {len(failures) - MAX_NAMED - 1} more" if len(failures) > MAX_NAMED + 1 else ""
        raise TrainingInputError(f"{failures[0][1]}; likewise {names}{more}")
    if failures:
        raise failures[0][1]
    return slices


class _NoLesionError(TrainingInputError):
    """A label has no lesion that is large enough."""


def slices_of(content: LabelledImage, *, plane: str = "axial", window: tuple[float, float] | None = None) -> list[LabelledSlice]:
    """Cut the slices of one image that its label touches; of an image without a label, slices spread evenly over it.

    Where all lesions have less than 12 pixels, the slices show normal tissue; the labelled pixels are kept, so that no crop shows them.

    Args:
        content: image and label, from ``read_entry``.
        plane, window: as for ``load_slices``.

    Raises:
        TrainingInputError: the label has none of the values of the findings.
    """
    entry, image, ids = content.entry, content.image, content.ids
    spatial = slice_plane(content.affine, plane, image.ndim - 1)
    slices, id_slices = to_slices(image, spatial), to_slices(ids, spatial)
    common: dict[str, Any] = {
        **{key: getattr(entry, key) for key in ("modality", "anatomy", "prompt", "dataset", "group")},
        "window": window_of(image, window, entry.prompt or f"{entry.modality} of {entry.anatomy}"),
        "plane": "" if spatial is None else plane,
    }

    def without_lesions(positions: Sequence[int] | range, finding: str) -> list[LabelledSlice]:
        empty = np.zeros(tuple(slices.shape[-2:]), bool)
        return [
            LabelledSlice(_compact(slices[i]), empty, (id_slices[i, 0] != 0).numpy(), finding, **common, name=f"{entry.image}, slice {i}")
            for i in _spread(positions)
        ]

    if entry.label is None or entry.is_normal:
        return without_lesions(range(len(slices)), entry.findings.get(ANY_VALUE, NORMAL))
    lesions = _lesions(entry, slices, id_slices, common)
    if not lesions and any(bool(mask_of(ids, values).any()) for values in entry.findings):
        logger.warning("label %s: its lesions have less than %d pixels; only the tissue around them is used", entry.label, MIN_AREA_PX)
        common["prompt"] = ""  # it may describe the lesions
        return without_lesions(touched(id_slices), NORMAL)
    if not lesions:
        values = ", ".join("above 0" if key == ANY_VALUE else " or ".join(map(str, key)) for key in entry.findings)
        raise _NoLesionError(
            f"label {entry.label} shows no lesion (looked for voxels of value {values}; it holds "
            f'{", ".join(map(str, torch.unique(ids).tolist()[:8]))}); give the entry "finding": "{NORMAL}" if the image is normal'
        )
    return lesions


def _lesions(entry: Entry, slices: Tensor, id_slices: Tensor, common: Mapping[str, Any]) -> list[LabelledSlice]:
    lesions: list[LabelledSlice] = []
    shared: dict[int, tuple[Tensor, NDArray[np.bool_]]] = {}
    for values, finding in entry.findings.items():
        for i, parts in _parts(mask_of(id_slices, values)).items():
            if parts and i not in shared:
                shared[i] = _compact(slices[i]), (id_slices[i, 0] != 0).numpy()
            for part in parts:
                picture, labelled = shared[i]
                lesion = labelled if np.array_equal(part, labelled) else part  # share the mask of a lesion alone on its slice
                lesions.append(LabelledSlice(picture, lesion, labelled, finding, **common, name=f"{entry.image}, slice {i}"))
    return lesions


def _parts(masks: Tensor) -> dict[int, list[NDArray[np.bool_]]]:
    """The lesions (h, w) on each of at most ``MAX_SLICES`` slices of masks (S, 1, h, w)."""

    def lesions_on(i: int) -> list[NDArray[np.bool_]]:
        return [p.numpy() for p in connected_components(masks[i, 0])[:MAX_PARTS] if int(p.sum()) >= MIN_AREA_PX]

    positions = [i for i in touched(masks) if int(masks[i].sum()) >= MIN_AREA_PX]
    parts = {i: lesions_on(i) for i in _spread(positions)}
    if not any(parts.values()):  # only specks; the lesions may lie on slices that were left out
        all_parts = {i: lesions for i in positions if (lesions := lesions_on(i))}
        parts = {i: all_parts[i] for i in _spread(list(all_parts))}
    return parts


def _compact(values: Tensor) -> Tensor:
    """A copy in the smallest type that holds the numbers, or float32, to which ``Window.to_model`` rounds them."""
    compact = values.float()
    for dtype in (torch.int16, torch.uint8):
        narrow = values.to(dtype)
        if torch.equal(narrow.to(values.dtype), values):
            compact = narrow
    return compact.clone(memory_format=torch.contiguous_format)


def _spread(positions: Sequence[int] | range) -> list[int]:
    """At most ``MAX_SLICES`` positions, evenly spread."""
    if len(positions) <= MAX_SLICES:
        return list(positions)
    return [positions[int((k + 0.5) * len(positions) / MAX_SLICES)] for k in range(MAX_SLICES)]
