"""The entries of a MONAI datalist as loaded samples, one after the other, for the banks that are made of them."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from monai_diffaug.errors import one_line

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
    """The entries of a section, read with ``LoadImaged``, channels first.

    Args:
        datalist: the JSON file.
        section: name of the list in the file.
        upright: read pictures rows first, as the shell does; else as MONAI's ``LoadImaged`` does, columns first.

    Raises:
        FileNotFoundError, ValueError: as ``entries_of``; ValueError also for an entry that cannot be read.
    """
    from monai.data.image_reader import PILReader
    from monai.transforms.io.dictionary import LoadImaged
    from monai.transforms.utility.dictionary import EnsureChannelFirstd
    from PIL.ImageOps import exif_transpose

    from monai_diffaug.files.upright_pictures import class_ids, visible_colours

    entries = entries_of(datalist, section)
    loaders = [LoadImaged([key], allow_missing_keys=True) for key in ("image", "label")]
    if upright:
        for load, converter in zip(loaders, (visible_colours, class_ids), strict=True):
            load.register(PILReader(reverse_indexing=False, converter=lambda picture, to=converter: to(exif_transpose(picture))))
    channel_first = EnsureChannelFirstd(["image", "label"], allow_missing_keys=True)

    def read(index: int) -> Mapping[Hashable, Any]:
        try:
            sample: Mapping[Hashable, Any] = channel_first(loaders[1](loaders[0](entries[index])))
        except Exception as error:  # the readers raise errors of different types
            raise ValueError(f"{Path(datalist)}, {section}[{index}] cannot be read: {one_line(error)}") from error
        return sample

    return map(read, range(len(entries)))


def words_at_the_top(datalist: str | Path) -> dict[str, Any]:
    """The words that stand at the top of a datalist and hold for all entries: "modality", "anatomy" and "finding"."""
    content = json.loads(Path(datalist).read_text(encoding="utf-8-sig"))
    return {key: content[key] for key in ("modality", "anatomy", "finding") if content.get(key)}
