"""The slices of the user's images that training draws from: one for each lesion, in the anatomical plane, windowed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.geometry.slices import slice_plane, to_slices, touched
from monai_diffaug.geometry.window import Window, window_of
from monai_diffaug.masks.boxes import connected_components
from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.datalist import Entry
from monai_diffaug.training.run_settings import TrainingInputError

__all__ = ["LabelledSlice", "load_slices"]

MIN_AREA_PX = 12
MAX_SLICES = 32  # of one finding in one volume, evenly spread: neighbours say nearly the same
MAX_PARTS = 8
AFFINE_TOLERANCE_MM = 1e-2
LOSSY_SUFFIXES = (".jpg", ".jpeg")
MAX_NAMED = 20  # files in one message


@dataclass(frozen=True)
class LabelledSlice:
    """One lesion on one slice, or a slice of normal tissue.

    Attributes:
        stored: (C, h, w) the file's numbers, C = 1 or 3, in the smallest type that holds them; shared by the lesions of a slice.
        lesion: (h, w) one connected lesion; empty on normal tissue.
        labelled: (h, w) everything labelled on the slice; shared too.
        finding: what the lesion is; "normal tissue" where there is none.
        modality, anatomy, prompt: as in ``Entry``.
        name: file and slice, for messages.
        window: what maps ``stored`` to the model's range; None where it is in it already.
        plane: in which a volume was cut; empty of 2-D images.
    """

    stored: Tensor
    lesion: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    finding: str
    modality: str
    anatomy: str
    prompt: str
    name: str
    window: Window | None = None
    plane: str = ""

    @property
    def image(self) -> Tensor:
        """(C, h, w) float32 in [-1, 1], made anew at each call: a data set of volumes is too large to be held like this."""
        return self.stored if self.window is None else self.window.to_model(self.stored)

    @property
    def is_normal(self) -> bool:
        return self.finding == NORMAL


def load_slices(
    entries: Sequence[Entry], *, plane: str = "axial", window: tuple[float, float] | None = None, progress: bool = False
) -> list[LabelledSlice]:
    """Load images and labels with MONAI's ``LoadImage`` and cut the slices that the labels touch.

    Args:
        entries: of the datalist.
        plane: "axial", "coronal" or "sagittal", found in the affine; 2-D images are one slice.
        window: intensities the model sees, in the image's unit; None takes each image's 0.5 and 99.5 percentiles.
        progress: show a progress bar.

    Raises:
        TrainingInputError: a file cannot be read, has no lesion, or is no 2-D or 3-D image.
        GridMismatchError: an image and its label are on different grids.
    """
    from tqdm import tqdm

    from monai_diffaug.files.upright_pictures import class_ids, visible_colours

    load = _Loaders(_loader(visible_colours), _loader(class_ids))
    found: list[LabelledSlice] = []
    empty: list[tuple[Entry, _NoLesionError]] = []
    for entry in tqdm(entries, desc="reading", disable=not progress):
        try:
            found += _slices_of(entry, load, plane, window)
        except _NoLesionError as error:  # reading takes long: all of them are told at once
            empty.append((entry, error))
    if len(empty) > 1:
        names = ", ".join(str(entry.label) for entry, _ in empty[1 : MAX_NAMED + 1])
        more = f" and {len(empty) - MAX_NAMED - 1} more" if len(empty) > MAX_NAMED + 1 else ""
        raise TrainingInputError(f"{empty[0][1]}; likewise {names}{more}")
    if empty:
        raise empty[0][1]
    return found


class _NoLesionError(TrainingInputError):
    """A label has no lesion that is large enough."""


class _Loaders(NamedTuple):
    """What reads images, and what reads labels."""

    image: Any
    label: Any


def _loader(converter: Callable[[Any], Any]) -> Any:
    """``LoadImage`` that keeps the stored type and reads pictures upright."""
    from monai.transforms.io.array import LoadImage

    from monai_diffaug.files.upright_pictures import UprightPictureReader

    load = LoadImage(image_only=True, ensure_channel_first=True, dtype=None)
    load.register(UprightPictureReader(converter))
    return load


def _read(load: Any, file: Path, role: str) -> Any:
    try:
        with warnings.catch_warnings():
            # PIL's array is read-only, and so is what is done with it here
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            volume = load(file)
    except Exception as error:  # each reader has errors of its own
        reason = str(error).strip().splitlines()
        raise TrainingInputError(f"{role} {file} cannot be read: {reason[0] if reason else type(error).__name__}") from error
    while volume.ndim > 3 and volume.shape[-1] == 1 and volume.ndim != 4:
        volume = volume[..., 0]
    if volume.ndim not in (3, 4) or 0 in volume.shape:
        raise TrainingInputError(f"{role} {file} must be one 2-D or 3-D image, got shape {tuple(volume.shape)} with the channel first")
    return volume


def _slices_of(entry: Entry, load: _Loaders, plane: str, window: tuple[float, float] | None) -> list[LabelledSlice]:
    image = _read(load.image, entry.image, "image")
    if image.shape[0] not in (1, 3):
        raise TrainingInputError(f"image {entry.image} has {image.shape[0]} channels; give 1 (grey) or 3 (colour)")
    values = _numbers(image)
    _require_finite(values, f"image {entry.image}")
    affine = np.asarray(image.affine) if values.ndim == 4 else None
    cut = slice_plane(affine, plane, values.ndim - 1)
    seen = window_of(values, window)
    slices = to_slices(values, cut)
    ids = torch.zeros_like(values[:1], dtype=torch.int64)
    if entry.label is not None:
        ids = _ids(entry, load.label, image)
    id_slices = to_slices(ids, cut)
    common: dict[str, Any] = {"modality": entry.modality, "anatomy": entry.anatomy, "prompt": entry.prompt, "window": seen}
    common["plane"] = "" if cut is None else plane
    if entry.is_normal:
        picked = _spread(range(len(slices)))
        empty = np.zeros(tuple(slices.shape[-2:]), bool)
        return [LabelledSlice(_kept(slices[i]), empty, empty, NORMAL, **common, name=f"{entry.image}, slice {i}") for i in picked]
    result = _lesions(entry, slices, id_slices, common)
    if not result:
        wanted = ", ".join("above 0" if value is None else str(value) for value in entry.findings)
        raise _NoLesionError(
            f"label {entry.label} shows no lesion of {MIN_AREA_PX} pixels or more (looked for voxels of value {wanted}; it holds "
            f'{", ".join(map(str, torch.unique(ids).tolist()[:8]))}); give the entry "finding": "{NORMAL}" if the image is normal, '
            "leave it out if its lesions are smaller"
        )
    return result


def _lesions(entry: Entry, slices: Tensor, id_slices: Tensor, common: Mapping[str, Any]) -> list[LabelledSlice]:
    found: list[LabelledSlice] = []
    shared: dict[int, tuple[Tensor, NDArray[np.bool_]]] = {}
    for value, finding in entry.findings.items():
        wanted = id_slices > 0 if value is None else id_slices == value
        for i, parts in _parts(wanted).items():
            if parts and i not in shared:
                shared[i] = _kept(slices[i]), (id_slices[i, 0] != 0).numpy()
            for part in parts:
                picture, labelled = shared[i]
                lesion = labelled if np.array_equal(part, labelled) else part  # one mask for a lesion alone on its slice
                found.append(LabelledSlice(picture, lesion, labelled, finding, **common, name=f"{entry.image}, slice {i}"))
    return found


def _parts(wanted: Tensor) -> dict[int, list[NDArray[np.bool_]]]:
    """The lesions (h, w) on each of at most ``MAX_SLICES`` slices of a label (S, 1, h, w)."""

    def on(i: int) -> list[NDArray[np.bool_]]:
        return [p.numpy() for p in connected_components(wanted[i, 0])[:MAX_PARTS] if int(p.sum()) >= MIN_AREA_PX]

    touching = [i for i in touched(wanted) if int(wanted[i].sum()) >= MIN_AREA_PX]
    found = {i: on(i) for i in _spread(touching)}
    if not any(found.values()):  # specks alone; the lesions may lie on slices that were left out
        every = {i: parts for i in touching if (parts := on(i))}
        found = {i: every[i] for i in _spread(list(every))}
    return found


def _kept(values: Tensor) -> Tensor:
    """The same numbers, or what ``Window.to_model`` rounds them to, in a copy of as few bytes as hold them."""
    kept = values.float()
    for dtype in (torch.int16, torch.uint8):
        narrow = values.to(dtype)
        if torch.equal(narrow.to(values.dtype), values):
            kept = narrow
    return kept.clone(memory_format=torch.contiguous_format)


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
    if set(entry.findings) == {None} and str(entry.label).lower().endswith(LOSSY_SUFFIXES):
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


def _spread(positions: Sequence[int] | range) -> list[int]:
    """At most ``MAX_SLICES`` positions, evenly spread."""
    if len(positions) <= MAX_SLICES:
        return list(positions)
    return [positions[int((k + 0.5) * len(positions) / MAX_SLICES)] for k in range(MAX_SLICES)]
