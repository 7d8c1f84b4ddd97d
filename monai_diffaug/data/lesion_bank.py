"""Grey patterns of the lesions that a generator was trained on, and the comparison of new lesions with them.

A pattern is a square of 1.5 times the longer side of a lesion's mask, resampled to 32 x 32 pixels, in grey. Two lesions are compared by
the correlation of their grey values inside the mask of the new lesion: brightness, contrast and surroundings have no effect. The
similarity is the maximum over eight orientations (mirrored, rotated by 90 degrees), shifts up to a tenth of the lesion, and sizes from
0.9 to 1.1.

It detects copies: pasted elsewhere with a soft edge, mirrored, brighter, noisier, a little shifted or resized (``monai-diffaug evaluate
memorisation`` measures the rate; with a hard edge it is somewhat lower). It does not detect a lesion that was rotated by 10 degrees,
deformed, smoothed or copied in part, nor the lesion of the same patient from another angle. Smooth lesions and lesions of few pixels
resemble each other, so a generator that paints smoother than the real images is rejected more often; lesions without texture, such as a
black cyst, are never detected. A correlation neither proves nor disproves privacy.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from monai.config.type_definitions import NdarrayOrTensor
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.data.datalist_samples import loaded_samples
from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.geometry.grids import affine_of, check_finite, check_grid, check_image, plain
from monai_diffaug.geometry.roi import Roi, crop
from monai_diffaug.geometry.slices import slice_plane, to_slices, touched
from monai_diffaug.masks.labels import voxels_of
from monai_diffaug.models.registry import ModelSpec

__all__ = ["LesionBank", "Nearest", "load_lesion_bank"]

logger = logging.getLogger(__name__)

SIDE_PX = 32
CONTEXT = 1.5  # side of the square in longer sides of the mask; leaves room for the shifts
SCALES = (1.0, 0.9, 1.1)
SHIFT_PX = 2  # of 32; the longer side of a lesion is 21
COARSE_STEP_PX = 2
CANDIDATES = 64  # patterns for the fine search, from the coarse search
MIN_AREA_PX = 25  # smaller components of a mask are smooth blobs that resemble each other
MAX_SLICES = 8  # per volume, evenly spread over its lesion
MAX_YARDSTICK = 256  # images for which the nearest neighbour is computed when a bank is made
ROWS_PER_STEP = 1024
LEAST_VARIANCE = 1e-3  # of a pattern inside a mask, as a share of the square's variance: flat patterns resemble nothing
FLAT_SHARE = 1e-4  # a square with a smaller standard deviation, as a share of its values, contains only rounding errors


class Nearest(NamedTuple):
    """The most similar lesion of a bank.

    Attributes:
        similarity: correlation inside the mask, in [-1, 1]; -1 if no component of the mask is large enough.
        image: index of its image in the samples of the bank; -1 if there is none.
    """

    similarity: float
    image: int


class _Part(NamedTuple):
    """A connected component of a mask in a slice: its square at each of ``SCALES``, grey values and mask (3, 32, 32)."""

    greys: Tensor
    insides: Tensor


@dataclass(frozen=True, eq=False)
class LesionBank:
    """Lesions as patterns of 2 kB each, and the similarities among real lesions. It is immutable: copies are the same object.

    Make a bank with ``LesionBank.of(...)`` or ``LesionBank.from_datalist(...)`` and write it with ``save``. Transforms take the file's
    name, so that they stay small when they are pickled. A process reads a file once.

    Attributes:
        patterns: (m, 1024) float16, normalised squares.
        owners: (m,) int64, index of the image of each pattern.
        yardstick: (k,) float32, for k images the highest similarity of a lesion to one of another group.
        channels: 1 or 3, of the images.
        plane: slicing plane of volumes.
        window: intensities are clipped to it, in the image's unit; None does not clip.
        groups: (m,) text, group of each pattern; the index of the image if the samples have no groups.

    >>> def sample(seed):
    ...     label = torch.zeros(1, 40, 40, dtype=torch.uint8)
    ...     label[:, 10:30, 10:30] = 1
    ...     return {"image": torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(seed)), "label": label}
    >>> bank = LesionBank.of([sample(seed) for seed in range(3)])
    >>> nearest = bank.nearest(sample(1)["image"] * 100 + 5, sample(1)["label"])
    >>> nearest.image, round(nearest.similarity, 2)
    (1, 1.0)
    """

    patterns: NDArray[np.float16]
    owners: NDArray[np.int64]
    yardstick: NDArray[np.float32]
    channels: int
    plane: str
    window: tuple[float, float] | None
    groups: NDArray[Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> LesionBank:
        return self

    def __len__(self) -> int:
        """Number of images with a lesion."""
        return len(np.unique(self.owners))

    @classmethod
    def of(
        cls,
        samples: Iterable[Mapping[Hashable, Any]],
        *,
        image_key: str = "image",
        label_key: str = "label",
        label_value: int | None = None,
        group_key: str | None = None,
        plane: str = "axial",
        window: tuple[float, float] | None = None,
    ) -> LesionBank:
        """Make a bank of samples: a list of dictionaries, or a MONAI ``Dataset`` with the loading part of the pipeline.

        Args:
            samples: each with an image (C, H, W[, D]) and a label (1, H, W[, D]); samples without a label or a lesion are skipped.
            image_key, label_key: of image and label.
            label_value: class id of lesions; None means all values above 0.
            group_key: samples with the same value, e.g. of one patient, are not compared with each other in the yardstick. None: each
                sample is a group, and near-duplicates among them make the guard less strict.
            plane: slicing plane of volumes; up to 8 slices of each lesion are used.
            window: clip intensities to it, as the generator does, in the image's unit.

        Raises:
            ValueError: no lesions, lesions of one group only, images with different channels, or an array that is no image.
            GridMismatchError: a label is not on its image's grid.
            KeyError: a sample lacks the image or the group.
        """
        parts: list[_Part] = []
        owners: list[int] = []
        groups: list[Hashable] = []
        channels: set[int] = set()
        count = 0
        for index, sample in enumerate(samples):
            count += 1
            if sample.get(label_key) is None:
                continue
            for key in (image_key,) if group_key is None else (image_key, group_key):
                if key not in sample:
                    raise KeyError(f"sample {index} has no {key!r} (it has {', '.join(map(str, sample))})")
            label = plain(sample[label_key])
            try:
                lesions = _parts(sample[image_key], voxels_of(label, label_value), plane, window)
            except ValueError as error:
                raise type(error)(f"sample {index}: {error}") from error
            parts += lesions
            owners += [index] * len(lesions)
            groups += [index if group_key is None else sample[group_key]] * len(lesions)
            channels.update({int(sample[image_key].shape[0])} if lesions else ())
        if not parts:
            voxels = "voxels above 0" if label_value is None else f"voxels of value {label_value}"
            raise ValueError(
                f"no lesion for the bank: none of {count} samples has {voxels} in {label_key!r}, {MIN_AREA_PX} connected pixels or more "
                "in a slice; check label_key and label_value"
            )
        if len(channels) > 1:
            raise ValueError("some images have 1 channel and some 3; load them alike, e.g. with EnsureChannelFirstd and a Lambdad")
        patterns = torch.stack([part.greys[0] for part in parts]).flatten(1).half()
        yardstick = _yardstick(parts, patterns, np.asarray(owners), groups)
        names = np.asarray([str(group) for group in groups])
        return cls(patterns.numpy(), np.asarray(owners, np.int64), yardstick, channels.pop(), plane, window, names)

    @classmethod
    def from_datalist(
        cls,
        datalist: str | Path,
        *,
        section: str = "training",
        label_value: int | None = None,
        group_key: str | None = None,
        plane: str = "axial",
        window: tuple[float, float] | None = None,
    ) -> LesionBank:
        """Make a bank of a MONAI datalist, ``{"training": [{"image": ..., "label": ...}, ...]}``, read with ``LoadImaged``.

        Args:
            datalist: the JSON file; paths are relative to it. Entries without "label" are skipped.
            section: name of the list in the file.
            label_value, group_key, plane, window: as in ``of``; ``group_key`` is a key of the entries.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no JSON, no such section, or an entry that cannot be read; otherwise as ``of``.
            KeyError: as ``of``.
        """
        samples = loaded_samples(datalist, section)
        return cls.of(samples, label_value=label_value, group_key=group_key, plane=plane, window=window)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The content of the bank's file by name."""
        return {
            "patterns": self.patterns,
            "owners": self.owners,
            "yardstick": self.yardstick,
            "channels": np.asarray(self.channels),
            "plane": np.asarray(self.plane),
            "window": np.asarray(() if self.window is None else self.window, np.float64),
            "groups": self.groups,
        }

    def save(self, path: str | Path) -> Path:
        """Write the bank as ``.npz`` (never an incomplete file); returns the path. ValueError if a file there is no lesion bank."""
        target = Path(path)
        self.require_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as part, part.open("wb") as file:
            np.savez_compressed(file, **self.arrays())  # type: ignore[arg-type]
        return target

    @classmethod
    def require_replaceable(cls, path: Path) -> None:
        """Raise ValueError if a file that is no lesion bank is there."""
        try:
            if path.is_symlink() or path.is_file():
                cls.load(path)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{path} is there and is no lesion bank; it is not replaced, name another file") from error

    @classmethod
    def load(cls, path: str | Path) -> LesionBank:
        """Read a bank that ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no bank.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"lesion bank {path}: no such file; make one by LesionBank.of(...).save(path)")
        try:
            with np.load(path, allow_pickle=False) as stored:
                window = tuple(float(value) for value in stored["window"])
                return cls(
                    stored["patterns"],
                    stored["owners"],
                    stored["yardstick"],
                    int(stored["channels"]),
                    str(stored["plane"]),
                    (window[0], window[1]) if window else None,
                    stored["groups"],
                )
        except (KeyError, ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is no lesion bank ({error}); make one by LesionBank.of(...).save(path)") from error

    def nearest(self, image: NdarrayOrTensor, mask: NdarrayOrTensor, *, exempt_group: str | None = None) -> Nearest:
        """The lesion of the bank that is most similar to the one in the mask; the maximum over components and slices.

        Args:
            image: (C, H, W[, D]), any unit, with the number of channels of the bank.
            mask: (1, H, W[, D]), non-zero inside the lesion.
            exempt_group: lesions of this group are not compared; None compares all.

        Raises:
            GridMismatchError: the mask is on another grid.
            ValueError: another number of channels, or non-finite voxels.
        """
        check_image(image)
        if image.shape[0] != self.channels:
            raise ValueError(
                f"the lesion bank was made of images with {self.channels} channel(s), this one has {image.shape[0]}; "
                "make the bank with the loading part of this pipeline"
            )
        patterns = torch.from_numpy(self.patterns)
        nearest = Nearest(-1.0, -1)
        allowed = None if exempt_group is None else torch.from_numpy(self.groups != exempt_group)
        if allowed is not None and not bool(allowed.any()):
            return nearest
        for part in _parts(image, mask, self.plane, self.window):
            similarity, row = _search(part, patterns, allowed)
            nearest = max(nearest, Nearest(similarity, int(self.owners[row])))
        return nearest


def load_lesion_bank(spec: ModelSpec, device: torch.device) -> LesionBank:
    """Loader for ``shared_model``: a file is read once per process."""
    return LesionBank.load(spec.source)


def _parts(image: NdarrayOrTensor, mask: NdarrayOrTensor, plane: str, window: tuple[float, float] | None) -> list[_Part]:
    """Connected components of a mask, slice by slice."""
    from scipy.ndimage import label

    check_image(image)
    check_grid("mask", mask, image)
    volume = plain(image)
    cut = slice_plane(affine_of(image), plane, volume.ndim - 1)
    slices, masks = to_slices(volume, cut), to_slices(plain(mask), cut)
    indices = touched(masks)
    spread = np.unique(np.linspace(0, len(indices) - 1, min(len(indices), MAX_SLICES)).round().astype(int))
    parts = []
    for index in (indices[i] for i in spread):
        check_finite(slices[index])
        grey = slices[index].float().mean(0, keepdim=True).cpu()
        names, _ = label(masks[index, 0].cpu().numpy() != 0)
        areas = np.bincount(names.ravel())
        for name in range(1, len(areas)):
            if areas[name] >= MIN_AREA_PX:
                parts.append(_part(grey if window is None else grey.clamp(*window), torch.from_numpy(names == name)))
    return parts


def _part(grey: Tensor, mask: Tensor) -> _Part:
    """Squares centred on a mask (h, w), at each of ``SCALES``."""
    rows, columns = torch.nonzero(mask.any(1)).flatten(), torch.nonzero(mask.any(0)).flatten()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    extent = max(bottom - top, right - left)
    greys, insides = [], []
    for scale in SCALES:
        side = extent + 2 * round((CONTEXT * scale - 1) * extent / 2)  # parity of the extent, so that mirroring shifts nothing
        roi = Roi((top + bottom - side) // 2, (left + right - side) // 2, side)
        square, inside = crop(grey, roi, SIDE_PX)[0], crop(mask[None].float(), roi, SIDE_PX)[0]
        flat = FLAT_SHARE * float(square.abs().max())
        greys.append((square - square.mean()) / square.std().clamp(min=max(flat, 1e-12)))
        insides.append(inside > min(0.5, 0.5 * float(inside.max())))  # with the rim; otherwise smooth lesions resemble each other
    return _Part(torch.stack(greys), torch.stack(insides))


def _views(part: _Part, scales: int, step_px: int) -> tuple[Tensor, Tensor]:
    """A component in all orientations, shifts and sizes, both (n, 1024): grey values with zero mean and unit norm inside, and mask."""
    inside = part.insides[:scales].float()
    count = inside.sum((1, 2), keepdim=True)
    grey = part.greys[:scales] * inside
    grey = (grey - grey.sum((1, 2), keepdim=True) / count) * inside
    grey = grey / grey.square().sum((1, 2), keepdim=True).clamp(min=LEAST_VARIANCE * count).sqrt()
    pair = torch.stack([grey, inside])
    turned = torch.cat([view for k in range(4) for view in (pair.rot90(k, (-2, -1)), pair.rot90(k, (-2, -1)).flip(-1))], 1)
    padded = F.pad(turned, (SHIFT_PX,) * 4)
    shifts = range(0, 2 * SHIFT_PX + 1, step_px)
    views = torch.cat([padded[..., y : y + SIDE_PX, x : x + SIDE_PX] for y in shifts for x in shifts], 1).flatten(2)
    return views[0], views[1]


def _search(part: _Part, patterns: Tensor, allowed: Tensor | None = None) -> tuple[float, int]:
    """Similarity and row of the most similar pattern: a coarse search over all patterns, then a fine one over the best.

    Args:
        part: the component.
        patterns: (m, 1024) float16.
        allowed: (m,) bool, False excludes a row; None allows all.
    """
    grey, inside = _views(part, 1, COARSE_STEP_PX)
    coarse = torch.cat([_correlations(grey, inside, rows.float()).amax(0) for rows in patterns.split(ROWS_PER_STEP)])
    if allowed is not None:
        coarse[~allowed] = -2
    candidates = coarse.topk(min(CANDIDATES, len(coarse) if allowed is None else int(allowed.sum()))).indices
    fine = _correlations(*_views(part, len(SCALES), 1), patterns[candidates].float()).amax(0)
    best = int(fine.argmax())
    return float(fine[best].clamp(-1, 1)), int(candidates[best])


def _correlations(grey: Tensor, inside: Tensor, patterns: Tensor) -> Tensor:
    """(n, m) Pearson correlation of n views with m patterns, inside the mask of each view."""
    count = inside.sum(1, keepdim=True)
    mean = inside @ patterns.T / count
    variance = inside @ patterns.square().T / count - mean.square()
    result: Tensor = grey @ patterns.T / (variance.clamp(min=LEAST_VARIANCE) * count).sqrt()
    return result


def _yardstick(parts: list[_Part], patterns: Tensor, owners: NDArray[np.int64], groups: list[Hashable]) -> NDArray[np.float32]:
    """Similarity of a lesion to the nearest one of another group, for up to 256 images."""
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(number) < 2:
        raise ValueError("the lesions are all of one group: likeness among real lesions needs two images of different groups or more")
    group = torch.tensor([number[name] for name in groups])
    images = np.random.RandomState(0).permutation(np.unique(owners))[:MAX_YARDSTICK]
    highest = []
    for image in images:
        rows = np.flatnonzero(owners == image)
        highest.append(max(_search(parts[row], patterns, group != group[row])[0] for row in rows))
    return np.asarray(highest, np.float32)
