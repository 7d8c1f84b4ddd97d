"""Keep all keys of a sample in those caches of MONAI that store arrays only.

``GDSDataset`` stores arrays, and reads only the keys of the raw item; ``LMDBDataset`` converts numbers to tensors. A pipeline that
adds texts and records in its cached part needs three steps::

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

    ``GDSDataset`` reads the keys of the raw item only: without placeholders, a mask, a prompt or a record that the cached part adds
    would exist in the first epoch and be missing from the second on.

    >>> with_placeholders([{"image": "a.nii"}], ["mask"])
    [{'mask': None, 'image': 'a.nii'}]
    """
    added = dict.fromkeys(keys)
    return [{**added, **item} for item in data]


class PackKeysd(MapTransform, Described):
    """Convert texts, numbers and records to byte tensors, as the last transform of the cached part.

    ``GDSDataset`` silently does not cache an item with a value that is not an array.

    Args:
        keys: of values in JSON's types, e.g. an id, a prompt or a record, and of paths, which become texts; arrays are not changed.
        allow_missing_keys: skip keys that a sample does not have.

    Raises:
        TypeError: a value that JSON cannot represent.

    >>> packed = PackKeysd(["prompt"])({"prompt": "cyst", "image": 1})
    >>> packed["prompt"].dtype, UnpackKeysd(["prompt"])(packed)["prompt"]
    (torch.uint8, 'cyst')
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
    """Inverse of ``PackKeysd``, as the first transform after the cached part.

    It draws no random numbers, but is marked as random, because MONAI's data sets stop caching at the first random transform.

    ``GDSDataset`` returns plain tensors and ``{key}_meta_dict`` if it reads an item from the cache, and the original sample if the item
    is new; a batch with both could not be collated. This transform makes both equal: an image gets its meta data and affine. The list
    of applied operations is lost, so spatial transforms of the cached part cannot be inverted.

    Args:
        keys: as in ``PackKeysd``.
        array_keys: the images, masks and labels of the sample.
        allow_missing_keys: skip keys that a sample does not have.

    >>> UnpackKeysd("id")(PackKeysd("id")({"id": 7}))
    {'id': 7}
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
