"""Keep every key of a sample through the caches of MONAI that hold arrays alone.

``GDSDataset`` stores arrays, and reads back only the keys of the raw item; ``LMDBDataset`` turns numbers into tensors. A pipeline
that adds texts and records in its cached part needs three things::

    data = with_placeholders(data, ("mask", "prompt", "image_diffaug"))          # for GDSDataset
    Compose([
        ..., CachedRandomd(...), PackKeysd(("id", "prompt", "image_diffaug")),   # the last transform of the cached part
        UnpackKeysd(("id", "prompt", "image_diffaug"), array_keys=("image", "label", "mask")), ...,
    ])
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.transforms.traits import RandomizableTrait
from monai.utils import convert_to_tensor

from monai_diffaug.edit.signature import Described

__all__ = ["PackKeysd", "UnpackKeysd", "with_placeholders"]


def with_placeholders(data: Iterable[Mapping[Hashable, Any]], keys: Iterable[Hashable]) -> list[dict[Hashable, Any]]:
    """The items with ``None`` under each key that a cached transform will add.

    ``GDSDataset`` reads back the keys of the raw item only; a mask, a prompt or a record that is added in the cached part would
    be there in the first epoch and missing from the second.
    """
    added = dict.fromkeys(keys)
    return [{**added, **item} for item in data]


class PackKeysd(MapTransform, Described):
    """Turn texts, numbers and records into byte tensors, as the last transform of the cached part.

    One value that is no array turns the cache of ``GDSDataset`` off for the whole item, silently.

    Args:
        keys: values that JSON can hold, such as an id, a prompt or a record, and paths, which come back as texts; arrays stay as they are.
        allow_missing_keys: skip keys that a sample lacks.

    Raises:
        TypeError: a value that JSON cannot hold.
    """

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if not isinstance(d[key], (torch.Tensor, np.ndarray)):
                d[key] = torch.frombuffer(bytearray(_as_json(d[key], key).encode()), dtype=torch.uint8)
        return d


class UnpackKeysd(MapTransform, RandomizableTrait, Described):
    """The inverse of ``PackKeysd``, as the first transform after the cached part, which it ends.

    It draws nothing; MONAI's data sets stop caching at the first transform that says it is random.

    ``GDSDataset`` returns bare tensors and ``{key}_meta_dict`` for what it has read back, and the sample as it was for what it has
    just made; a batch of both would not collate. Here both become the same: an image gets its meta data with the affine back.
    What is lost is the list of applied operations, so spatial transforms of the cached part cannot be inverted.

    Args:
        keys: as given to ``PackKeysd``.
        array_keys: the images, masks and labels of the sample.
        allow_missing_keys: skip keys that a sample lacks.
    """

    def __init__(self, keys: KeysCollection, *, array_keys: Iterable[Hashable] = (), allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.array_keys = tuple(array_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], torch.Tensor) and d[key].dtype == torch.uint8 and d[key].ndim == 1:
                d[key] = json.loads(bytes(d[key].cpu().tolist()))
            d.pop(f"{key}_meta_dict", None)
        for key in self.array_keys:
            stored = d.pop(f"{key}_meta_dict", {})
            if key not in d:
                continue
            meta = {name: value for name, value in stored.items() if name not in ("shape", "dtype")}
            d[key] = convert_to_tensor(d[key], track_meta=isinstance(d[key], MetaTensor))
            if meta:
                d[key] = MetaTensor(d[key], meta=meta)
        return d


def _as_json(value: Any, key: Hashable) -> str:
    def plain(part: Any) -> Any:
        if isinstance(part, np.generic):
            return part.item()
        if isinstance(part, os.PathLike):
            return str(part)
        raise TypeError(f"{key!r} holds a {type(part).__name__}, which JSON cannot; make it a text, a number or an array, or leave it out")

    return json.dumps(value, default=plain)
