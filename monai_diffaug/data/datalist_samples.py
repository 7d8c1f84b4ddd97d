"""The entries of a MONAI datalist as loaded samples, one after the other, for the banks that are made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from monai_diffaug.errors import one_line
from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture_tensor import model_values, tensor_on_grid
from monai_diffaug.files.upright_pictures import class_ids, visible_colours
from monai_diffaug.masks.label_file import ids_of_file

__all__ = ["entries_of", "loaded_samples", "words_at_the_top"]


def entries_of(datalist: str | Path, section: str) -> list[dict[str, Any]]:
    """The entries of one list of ``{"training": [{"image": ..., "label": ...}, ...]}``, without items that are null.

    Paths are relative to the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, or no such section.
    """
    from monai.data.decathlon_datalist import load_decathlon_datalist

    path = Path(datalist)
    if not path.is_file():
        raise FileNotFoundError(f"datalist {path}: no such file")
    try:
        entries = load_decathlon_datalist(path, True, section, base_dir=path.parent)
    except (UnicodeDecodeError, JSONDecodeError) as error:
        raise ValueError(f"datalist {path} is no JSON: {error}") from error
    except TypeError as error:
        raise ValueError(f'datalist {path}: "{section}" must be a list of entries with "image" and "label"') from error
    return [{key: value for key, value in entry.items() if value is not None} for entry in entries]  # "label": null is no label


def loaded_samples(datalist: str | Path, section: str, *, upright: bool = False) -> Iterator[Mapping[Hashable, Any]]:
    """The entries of a section as loaded samples, channels first.

    Args:
        datalist: the JSON file.
        section: name of the list in the file.
        upright: read with the package's readers, pictures rows first, as the shell does; else as MONAI's ``LoadImaged`` does, pictures
            columns first.

    Raises:
        FileNotFoundError, ValueError: as ``entries_of``; ValueError also for an entry that cannot be read.
    """
    entries = entries_of(datalist, section)
    load = _upright if upright else _as_load_imaged()

    def read(index: int) -> Mapping[Hashable, Any]:
        try:
            return load(entries[index])
        except Exception as error:  # the readers raise errors of different types
            raise ValueError(f"{Path(datalist)}, {section}[{index}] cannot be read: {one_line(error)}") from error

    return map(read, range(len(entries)))


def _as_load_imaged() -> Callable[[Any], Mapping[Hashable, Any]]:
    from monai.transforms.io.dictionary import LoadImaged
    from monai.transforms.utility.dictionary import EnsureChannelFirstd

    keys = ["image", "label"]
    load, channel_first = LoadImaged(keys, allow_missing_keys=True), EnsureChannelFirstd(keys, allow_missing_keys=True)
    return lambda entry: channel_first(load(entry))


def _upright(entry: Mapping[str, Any]) -> Mapping[Hashable, Any]:
    sample: dict[Hashable, Any] = dict(entry.items())
    image = read_picture(Path(entry["image"]), convert=visible_colours)
    sample["image"] = tensor_on_grid(model_values(image), image)
    if "label" in entry:
        label = read_picture(Path(entry["label"]), layers=True, convert=class_ids)
        ids = tensor_on_grid(ids_of_file(label), label)
        sample["label"] = ids.amax(0, keepdim=True)  # a colour picture of a mask counts where any channel is set
    return sample


def words_at_the_top(datalist: str | Path) -> dict[Hashable, Any]:
    """The words that stand at the top of a datalist and hold for all entries: "modality", "anatomy" and "finding"."""
    content = json.loads(Path(datalist).read_text(encoding="utf-8-sig"))
    return {key: content[key] for key in ("modality", "anatomy", "finding") if content.get(key)}
