"""Cut donors out of labelled images: each connected lesion with its surround, its voxel size and where it comes from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.config.type_definitions import NdarrayOrTensor
from numpy.typing import NDArray

from monai_diffaug.data.lesion_bank import MIN_AREA_PX
from monai_diffaug.geometry.grids import affine_of, check_finite, check_grid, check_image, plain
from monai_diffaug.geometry.slices import slice_plane, slice_spacing_mm, to_slices
from monai_diffaug.geometry.window import window_of
from monai_diffaug.masks.labels import class_ids, voxels_of
from monai_diffaug.masks.rim import rim_of, rim_statistics
from monai_diffaug.masks.tissue import normal_tissue, well_inside

__all__ = ["LESION", "OTHER", "Donor", "Origin", "cut_donors"]

LESION, OTHER = 1, 2  # values of a donor's mask: this lesion, what is not to be pasted with it
CONTEXT = 0.5  # tissue on each side of the crop, in longer sides of the lesion
LEAST_CONTEXT_PX = 8
WORDS = ("modality", "anatomy", "finding")
SMALLER = (np.uint8, np.int16, np.int32)  # types that whole numbers are stored in


@dataclass(frozen=True)
class Origin:
    """Where a donor comes from, and what it is.

    Attributes:
        name: unique in the bank: file (or index) of the image, "#" and the number of the lesion in it.
        source: file of the image, relative to the datalist; its index in the samples where there is no file.
        group: patient, or near-duplicates; ``source`` where the samples have no groups.
        label_value: class id in the label.
        modality, anatomy, finding: words, empty where unknown.
    """

    name: str
    source: str
    group: str
    label_value: int
    modality: str = ""
    anatomy: str = ""
    finding: str = ""


@dataclass(frozen=True, eq=False)
class Donor:
    """One lesion with its surround.

    Attributes:
        pixels: (S, C, h, w) slices in the unit of the image.
        mask: (S, h, w) uint8: 1 the lesion, 2 what is not to be pasted with it (labelled, or the black frame of a scan), 0 the rest.
        spacing_mm: distance of slices, rows and columns; 1 without an affine.
        is_volume: the image was 3-D.
        surround: (mean, standard deviation) of the tissue around the lesion, per channel.
        window: lowest and highest intensity of the image: its 0.5 and 99.5 percentiles, or 0 and 255 of uint8.
        origin: where it comes from.

    >>> from monai_diffaug import DonorBank
    >>> image, label = np.random.RandomState(0).rand(1, 64, 64) + 4, np.zeros((1, 64, 64), np.uint8)
    >>> label[:, 20:32, 20:30] = 1
    >>> donor = DonorBank.of([{"image": image - 3 * label, "label": label}]).donors[0]
    >>> int((donor.mask == 1).sum()), round(donor.surround[0][0]), donor.origin.label_value
    (120, 4, 1)
    """

    pixels: NDArray[Any]
    mask: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    is_volume: bool
    surround: tuple[tuple[float, float], ...]
    window: tuple[float, float]
    origin: Origin


def cut_donors(
    sample: Mapping[Hashable, Any],
    image: NdarrayOrTensor,
    label: NdarrayOrTensor,
    label_value: int | None,
    source: str,
    group: str,
    plane: str,
) -> list[Donor]:
    """The lesions of one image: connected parts of each class."""
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as components

    check_image(image)
    check_grid("label", label, image)
    volume = plain(image)
    check_finite(volume)
    affine = affine_of(image)
    cut = slice_plane(affine, plane, volume.ndim - 1)
    ids = plain(label).cpu()
    lesions = to_slices(voxels_of(ids, label_value), cut)[:, 0].numpy()
    if not lesions.any():
        return []
    classes = to_slices(class_ids(ids), cut)[:, 0].numpy()
    pixels, spacing_mm = to_slices(volume.cpu(), cut).numpy(), slice_spacing_mm(affine, cut)
    window = window_of(volume)
    tissue = _tissue(to_slices(window.to_model(volume.cpu()).amax(0, keepdim=True), cut)[:, 0].numpy(), lesions)
    donors: list[Donor] = []
    for value in np.unique(classes[lesions]):
        parts, _ = components(lesions & (classes == value), np.ones((3, 3, 3)))
        for number, box in enumerate(find_objects(parts), start=1):
            inside = parts[box] == number
            if inside.sum((1, 2)).max() < MIN_AREA_PX:
                continue
            near = _with_context(box, parts.shape)
            mask = np.where(parts[near] == number, LESION, np.where((classes[near] != 0) | ~tissue[near], OTHER, 0)).astype(np.uint8)
            crop = _small(pixels[near[0], :, near[1], near[2]])
            rim = rim_of(mask == LESION) & (mask == 0)
            surround = rim_statistics(crop.swapaxes(0, 1), rim)
            words = {key: _word(sample.get(key), int(value)) for key in WORDS}
            origin = Origin(f"{source}#{len(donors) + 1}", source, group, int(value), **words)
            donors.append(Donor(crop, mask, spacing_mm, volume.ndim == 4, surround, (window.low, window.high), origin))
    return donors


def _tissue(level: NDArray[np.float32], lesions: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Not the black frame of a scan, in the slices (S, H, W) with a lesion; ``level`` is the brightness in [-1, 1]."""
    tissue = np.zeros_like(lesions)
    for index in np.flatnonzero(lesions.any((1, 2))):
        brightness = np.where(lesions[index], 1.0, (level[index] + 1) / 2)  # a black lesion is no frame
        tissue[index] = well_inside(normal_tissue(brightness, np.zeros_like(brightness)))
    return tissue


def _with_context(box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A bounding box with tissue around it in the slices."""
    margin = max(LEAST_CONTEXT_PX, round(CONTEXT * max(side.stop - side.start for side in box[1:])))
    sides = [slice(max(side.start - margin, 0), min(side.stop + margin, length)) for side, length in zip(box[1:], shape[1:], strict=True)]
    return (box[0], *sides)


def _small(pixels: NDArray[Any]) -> NDArray[Any]:
    """A copy in the smallest type that holds the values: ``LoadImaged`` makes float32 of everything."""
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8)
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind != "f" or np.array_equal(pixels, np.round(pixels)):
        for dtype in SMALLER:
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return pixels.astype(dtype)
    return pixels.astype(np.float32)


def _word(words: Any, value: int) -> str:
    """A word, or that of a class in a table ``{"1": ..., "1,2": ...}``; the entry with the fewest classes counts."""
    if not isinstance(words, Mapping):
        return "" if words is None else str(words)
    fitting = {key: word for key, word in words.items() if str(value) in str(key).split(",")}
    return str(fitting[min(fitting, key=lambda key: str(key).count(","))]) if fitting else ""
