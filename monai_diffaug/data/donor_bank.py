"""Real lesions with their pixels, to be transplanted into other images.

A donor is one connected lesion: the crop of its image with some of the tissue around, its outline, the size of its voxels, and where it
comes from. Volumes are stored as slices of the bank's plane, in their order. A bank is one compressed file that is read without pickle;
``monai-diffaug lesion-bank`` writes it together with the patterns of ``LesionBank``, which refuses copies.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.data.datalist_samples import entries_of, loaded_samples, words_at_the_top
from monai_diffaug.data.donor import Donor, Origin, cut_donors
from monai_diffaug.data.lesion_bank import MIN_AREA_PX, LesionBank
from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.models.registry import ModelSpec

__all__ = ["DonorBank", "load_donor_bank", "require_replaceable"]

logger = logging.getLogger(__name__)

TABLE, PIXELS, MASKS = "donor_table", "donor_pixels", "donor_masks"


@dataclass(frozen=True, eq=False)
class DonorBank:
    """Lesions to transplant. It is immutable: copies are the same object.

    Make a bank with ``of`` or ``from_datalist`` and write it with ``save``. Transforms take the file's name, so that they stay small when
    they are pickled. A process reads a file once.

    Attributes:
        donors: the lesions, in the order of the samples.
        plane: slicing plane of volumes.

    >>> label = torch.zeros(1, 40, 40, dtype=torch.uint8)
    >>> label[:, 10:20, 10:30] = 2
    >>> bank = DonorBank.of([{"image": torch.rand(1, 40, 40), "label": label, "finding": "cyst", "patient": "a"}], group_key="patient")
    >>> donor = bank.donors[0]
    >>> donor.pixels.shape, donor.origin
    ((1, 1, 30, 40), Origin(name='0#1', source='0', group='a', label_value=2, modality='', anatomy='', finding='cyst'))
    """

    donors: tuple[Donor, ...]
    plane: str = "axial"

    def __deepcopy__(self, memo: dict[int, Any]) -> DonorBank:
        return self

    def __len__(self) -> int:
        """Number of lesions."""
        return len(self.donors)

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
    ) -> DonorBank:
        """Make a bank of samples: a list of dictionaries, or a MONAI ``Dataset`` with the loading part of the pipeline.

        Samples must be **training** samples: what is transplanted from a validation fold makes the validation worthless.

        Args:
            samples: each with an image (C, H, W[, D]) and a label (1, H, W[, D]), and where known "modality", "anatomy" and "finding"
                (a word, or a table from class id to word); samples without a label or a lesion are skipped.
            image_key, label_key: of image and label.
            label_value: class id of lesions; None means all values above 0, each class on its own.
            group_key: key of the patient (or of what near-duplicates share); None: each sample is a group.
            plane: slicing plane of volumes.

        Raises:
            ValueError: no lesions, or an array that is no image.
            GridMismatchError: a label is not on its image's grid.
            KeyError: a sample lacks the image or the group.
        """
        donors: list[Donor] = []
        count = 0
        for index, sample in enumerate(samples):
            count += 1
            if sample.get(label_key) is None:
                continue
            for key in (image_key,) if group_key is None else (image_key, group_key):
                if key not in sample:
                    raise KeyError(f"sample {index} has no {key!r} (it has {', '.join(map(str, sample))})")
            source = str(sample.get(SOURCE_KEY, index))
            group = source if group_key is None else str(sample[group_key])
            try:
                donors += cut_donors(sample, sample[image_key], sample[label_key], label_value, source, group, plane)
            except ValueError as error:
                raise type(error)(f"sample {index}: {error}") from error
        if not donors:
            voxels = "voxels above 0" if label_value is None else f"voxels of value {label_value}"
            raise ValueError(
                f"no lesion for the bank: none of {count} samples has {voxels} in {label_key!r}, {MIN_AREA_PX} connected voxels or more "
                "in a slice; check label_key and label_value"
            )
        return cls(tuple(donors), plane)

    @classmethod
    def from_datalist(
        cls,
        datalist: str | Path,
        *,
        section: str = "training",
        held_out: str = "validation",
        label_value: int | None = None,
        group_key: str | None = None,
        plane: str = "axial",
        upright: bool = False,
    ) -> DonorBank:
        """Make a bank of a MONAI datalist, ``{"training": [{"image": ..., "label": ...}, ...]}``, read with ``LoadImaged``.

        Words ("modality", "anatomy", "finding") are taken from the entries, else from the top of the file.

        Args:
            datalist: the JSON file; paths are relative to it. Entries without "label" are skipped.
            section: name of the list in the file.
            held_out: entries whose group also stands in this list of the file are left out (with ``group_key``).
            label_value, group_key, plane: as in ``of``; ``group_key`` is a key of the entries.
            upright: read pictures rows first, as ``monai-diffaug augment`` does; else as MONAI's ``LoadImaged`` does, columns first.
                Lesions must lie as in the pipeline that they are transplanted in.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no JSON, no such section, or an entry that cannot be read; otherwise as ``of``.
            KeyError: as ``of``.
        """
        path = Path(datalist)
        entries = entries_of(path, section)
        words, groups = words_at_the_top(path), _held_out(path, section, held_out, group_key)
        sources = [_relative(entry.get("image"), path.parent) for entry in entries]

        def named() -> Iterator[Mapping[Hashable, Any]]:
            left_out = 0
            for entry, source, sample in zip(entries, sources, loaded_samples(path, section, upright=upright), strict=True):
                if group_key is not None and str(entry.get(group_key)) in groups:
                    left_out += 1
                    continue
                named_sample: dict[Hashable, Any] = {**words, **sample}
                yield named_sample if source is None else {**named_sample, SOURCE_KEY: source}
            if left_out:
                logger.warning("left out %d entries of %r whose %s is also in %r", left_out, section, group_key, held_out)

        return cls.of(named(), label_value=label_value, group_key=group_key, plane=plane)

    def save(self, path: str | Path, *, patterns: LesionBank | None = None) -> Path:
        """Write the bank as ``.npz`` (never an incomplete file); returns the path.

        Args:
            path: the file; a bank that is there is replaced.
            patterns: a ``LesionBank`` that is written into the same file, which ``LesionNovelty`` then takes too.

        Raises:
            ValueError: a file there is no bank.
        """
        target = Path(path)
        require_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {**asdict(d.origin), "spacing_mm": d.spacing_mm, "is_volume": d.is_volume, "surround": d.surround, "window": d.window}
            | {"shape": d.pixels.shape, "dtype": d.pixels.dtype.str}
            for d in self.donors
        ]
        table = json.dumps({"plane": self.plane, "donors": rows}).encode()
        arrays = {
            TABLE: np.frombuffer(table, np.uint8),
            PIXELS: np.frombuffer(b"".join(np.ascontiguousarray(d.pixels).tobytes() for d in self.donors), np.uint8),
            MASKS: np.concatenate([d.mask.ravel() for d in self.donors]),
        }
        with whole_file(target) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays, **({} if patterns is None else patterns.arrays()))  # type: ignore[arg-type]
        return target

    @classmethod
    def load(cls, path: str | Path) -> DonorBank:
        """Read a bank that ``save`` wrote; nothing in the file is executed.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no bank of donors, or it is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"donor bank {path}: no such file; {MAKE}")
        try:
            with np.load(path, allow_pickle=False) as stored:
                if TABLE not in stored.files and "patterns" in stored.files:
                    raise ValueError("it has the patterns of a LesionBank and no pixels")
                return _unpacked(stored[TABLE], stored[PIXELS], stored[MASKS])
        except (KeyError, ValueError, TypeError, OSError, EOFError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is no donor bank ({error}); {MAKE}") from error


SOURCE_KEY = "diffaug_source"
MAKE = "make one by monai-diffaug lesion-bank DATALIST --out FILE, or DonorBank.of(...).save(path)"


def load_donor_bank(spec: ModelSpec, device: torch.device) -> DonorBank:
    """Loader for ``shared_model``: a file is read once per process."""
    return DonorBank.load(spec.source)


def require_replaceable(path: Path) -> None:
    """Raise ValueError if a file that is no bank, neither of donors nor of patterns, is there."""
    if not (path.is_symlink() or path.is_file()):
        return
    try:
        with np.load(path, allow_pickle=False) as stored:
            if {TABLE, "patterns"} & set(stored.files):
                return
    except (KeyError, ValueError, OSError, EOFError, BadZipFile, AttributeError):
        pass
    raise ValueError(f"{path} is there and is no lesion bank; it is not replaced, name another file")


def _unpacked(table: NDArray[np.uint8], pixels: NDArray[np.uint8], masks: NDArray[np.uint8]) -> DonorBank:
    content = json.loads(table.tobytes())
    donors, byte, voxel = [], 0, 0
    for row in content["donors"]:
        dtype, shape = np.dtype(row.pop("dtype")), tuple(int(n) for n in row.pop("shape"))
        if dtype.kind not in "uif" or len(shape) != 4 or min(shape) < 1:
            raise ValueError(f"a donor of type {dtype} and shape {shape}")
        n_bytes, n_voxels = int(np.prod(shape)) * dtype.itemsize, shape[0] * shape[2] * shape[3]
        crop = np.frombuffer(pixels[byte : byte + n_bytes].tobytes(), dtype).reshape(shape)
        mask = masks[voxel : voxel + n_voxels].reshape(shape[0], *shape[2:])
        byte, voxel = byte + n_bytes, voxel + n_voxels
        slices, rows, columns = map(float, row.pop("spacing_mm"))
        surround = tuple((float(mean), float(spread)) for mean, spread in row.pop("surround"))
        low, high = map(float, row.pop("window"))
        donors.append(Donor(crop, mask, (slices, rows, columns), bool(row.pop("is_volume")), surround, (low, high), Origin(**row)))
    if not donors or (byte, voxel) != (len(pixels), len(masks)):
        raise ValueError(f"its table describes {byte} bytes of {len(pixels)}")
    return DonorBank(tuple(donors), str(content["plane"]))


def _relative(file: Any, folder: Path) -> str | None:
    """The name of an entry's image, relative to the datalist."""
    if not isinstance(file, (str, Path)):
        return None
    path = Path(file)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _held_out(path: Path, section: str, held_out: str, group_key: str | None) -> set[str]:
    """Groups of the list that is held out; none where the file has no such list."""
    if group_key is None or held_out == section:
        return set()
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    rows = content.get(held_out) or []
    return {str(row[group_key]) for row in rows if isinstance(row, Mapping) and group_key in row}
