"""The sources of a run: the entries of a datalist, with the hashes of their files, and a source as a sample for the pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture import ImageFileError, Picture, require_same_grid, suffix_of
from monai_diffaug.files.picture_tensor import model_values, tensor_on_grid
from monai_diffaug.files.whole_file import content_hash
from monai_diffaug.masks.label_file import ids_of_file

__all__ = [
    "DatalistError",
    "FileState",
    "LoadedSource",
    "SourceImage",
    "common_words",
    "file_state",
    "load_source",
    "read_sources",
    "source_fields",
]

LOSSY_SUFFIXES = (".jpg", ".jpeg")
GROUP_KEYS = ("group", "patient")


class DatalistError(ValueError):
    """The datalist cannot be used; the message names the entry."""


class FileState(NamedTuple):
    """Content of a file or folder, and what shows without reading that it is the same."""

    sha256: str
    size: int  # bytes of all files
    mtime_ns: int  # of the file that changed last


@dataclass(frozen=True)
class SourceImage:
    """One entry of a datalist, in plain values.

    Attributes:
        id: unique; the path of the image as in the datalist, unless the entry has an "id".
        image, label: paths as in the datalist; the label may be None.
        folder: that the paths are relative to.
        group: patient; the id, unless the entry has a "group" or "patient".
        fold: number of the cross-validation fold, or None.
        words: the other text and numbers of the entry, which the pipeline finds in the sample.
        image_state, label_state: see ``FileState``; None before they are known.
    """

    id: str
    image: str
    label: str | None
    folder: str
    group: str
    fold: int | None = None
    words: Mapping[str, Any] = field(default_factory=dict)
    image_state: FileState | None = None
    label_state: FileState | None = None

    def path(self, role: str) -> Path | None:
        """Place of the "image" or the "label"; None without a label."""
        name = self.image if role == "image" else self.label
        return None if name is None else Path(self.folder) / Path(name).expanduser()

    def with_states(self, image: FileState | None, label: FileState | None) -> SourceImage:
        """The source with the states of its files."""
        return replace(self, image_state=image, label_state=label)


class LoadedSource(NamedTuple):
    """A source in memory."""

    image: Picture
    label: Picture | None
    sample: dict[Any, Any]  # "image" (C, H, W[, D]), "label" (1, H, W[, D]) int64 class ids, and the words of the entry


def read_sources(datalist: Path | str, section: str = "training") -> list[SourceImage]:
    """Entries of a MONAI datalist, ``{"training": [{"image": ..., "label": ...}, ...]}``; paths are relative to the file.

    Keys of an entry: "image"; optional "label", "id", "group" (or "patient"), "fold". Other text and numbers are passed on.

    Raises:
        DatalistError: no such file, no JSON, no such section, a damaged entry, or two entries with one id.
    """
    path = Path(datalist)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatalistError(f"datalist {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DatalistError(f"datalist {path} is no JSON: {error}") from error
    rows = content.get(section) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        sections = [name for name, value in content.items() if isinstance(value, list)] if isinstance(content, dict) else []
        raise DatalistError(
            f'datalist {path} has no list "{section}" of entries with "image" and "label"; its lists: {", ".join(sections)}'
        )
    sources: dict[str, SourceImage] = {}
    for index, row in enumerate(rows):
        source = _source(f"{path}, {section}[{index}]", row, path.parent)
        if source.id in sources:
            raise DatalistError(f'{path}, {section}[{index}]: another entry has the id {source.id!r} too; give each entry an "id"')
        sources[source.id] = source
    return list(sources.values())


def _source(where: str, row: Any, folder: Path) -> SourceImage:
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise DatalistError(f'{where}: an entry needs "image", one path; got {json.dumps(row)[:80]}')
    label, fold = row.get("label"), row.get("fold")
    if label is not None and not isinstance(label, str):
        raise DatalistError(f'{where}: "label" must be one path or null, got {type(label).__name__}')
    if fold is not None and (isinstance(fold, bool) or not isinstance(fold, int)):
        raise DatalistError(f'{where}: "fold" must be a whole number, got {fold!r}')
    id_ = str(row.get("id", row["image"]))
    group = next((str(row[key]) for key in GROUP_KEYS if row.get(key) is not None), id_)
    reserved = ("image", "label", "id", "mask", "fold")
    words = {key: value for key, value in row.items() if key not in reserved and isinstance(value, (str, int, float, bool))}
    return SourceImage(id_, row["image"], label, str(folder.absolute()), group, fold, words)


def common_words(sources: Sequence[SourceImage]) -> set[str]:
    """Keys of the words that all sources have."""
    return set.intersection(*(set(source.words) for source in sources)) if sources else set()


def file_state(path: Path, known: FileState | None = None) -> FileState:
    """Hash, size and time of a file or folder; the hash is not computed again if size and time are those of ``known``.

    Raises:
        OSError: it cannot be read.
    """
    files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    size, mtime_ns = sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)
    if known is not None and (known.size, known.mtime_ns) == (size, mtime_ns):
        return known
    return FileState(content_hash(path), size, mtime_ns)


def load_source(source: SourceImage) -> LoadedSource:
    """Read image and label of a source.

    Raises:
        ImageFileError: a file is missing, damaged, of a kind that is not read, or no longer the one that the run began with.
        GridMismatchError: the label is not on the image's grid.
    """
    image_path, label_path = source.path("image"), source.path("label")
    for path, known in ((image_path, source.image_state), (label_path, source.label_state)):
        if path is not None and path.exists() and known is not None and file_state(path, known).sha256 != known.sha256:
            raise ImageFileError(f"{path} changed since the run began; put it back, or start the run from the beginning with --restart")
    if image_path is None:
        raise ImageFileError(f"source {source.id!r} has no image")  # unreachable: the datalist has one
    image = read_picture(image_path)
    label = None if label_path is None else read_picture(label_path, layers=True)
    ids = np.zeros((1, *image.shape), np.int64) if label is None else _ids(image, label)
    sample = {
        **source.words,
        "group": source.group,
        "image": tensor_on_grid(model_values(image), image),
        "label": tensor_on_grid(ids, image),
        "id": source.id,
    }
    return LoadedSource(image, label, sample)


def _ids(image: Picture, label: Picture) -> NDArray[np.int64]:
    """(1, H, W[, D]) class ids; a colour picture of a mask has its largest channel."""
    require_same_grid(image, label, "label")
    if suffix_of(label.path) in LOSSY_SUFFIXES:
        raise ImageFileError(f"label {label.path} is a JPEG, whose compression changes class ids; save it as PNG first")
    ids = ids_of_file(label)
    if ids.shape[0] > 1 and label.affine is not None:
        raise ImageFileError(f"label {label.path} has {ids.shape[0]} channels or layers; give one class id per voxel")
    return ids.max(axis=0, keepdims=True)


def source_fields(source: SourceImage) -> dict[str, Any]:
    """The "source" of a ``JobRecord``."""
    states = {"image_sha256": source.image_state, "label_sha256": source.label_state}
    hashes = {name: state.sha256 for name, state in states.items() if state is not None}
    return {"image": source.image, "label": source.label, **hashes, "group": source.group, "fold": source.fold}
