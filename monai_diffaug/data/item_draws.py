"""Identity of a data set's item, and the number of times each item was drawn."""

from __future__ import annotations

import itertools
import os
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

__all__ = ["DrawCounts", "item_identity"]


class DrawCounts:
    """How often each item was drawn in this process: copies share the counts, a pickle starts at zero.

    There is no lock that a fork could inherit while it is held: ``dict.setdefault`` and ``next`` of a ``count`` are atomic.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Iterator[int]] = {}

    def take(self, item: str) -> int:
        return next(self._counts.setdefault(item, itertools.count()))

    def __deepcopy__(self, memo: dict[int, Any]) -> DrawCounts:
        return self

    def __reduce__(self) -> tuple[type[DrawCounts], tuple[()]]:
        return DrawCounts, ()


def item_identity(data: Mapping[Hashable, Any], id_key: Hashable) -> str:
    """The text that identifies a sample.

    Raises:
        KeyError: the sample has no ``id_key``.
        TypeError: its value is not text, an integer, a path or an image that knows its file.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"a sample must be a dictionary, got {type(data).__name__}; put it behind the transform that makes dictionaries")
    if id_key not in data:
        raise KeyError(
            f"id_key {id_key!r} is not in the sample, which has {sorted(map(str, data))}; give each item of the data set an id, "
            "or name the key of its file"
        )
    value = data[id_key]
    if isinstance(value, MetaTensor) and value.meta.get("filename_or_obj"):
        return str(value.meta["filename_or_obj"])
    if isinstance(value, (str, int, np.integer, os.PathLike)):
        return str(value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        number = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        if number.size == 1 and number.dtype.kind in "iu":
            return str(int(number.item()))
    raise TypeError(
        f"id_key {id_key!r} holds a {type(value).__name__}; an item is identified by text, an integer, a path, or an image whose "
        "meta data hold 'filename_or_obj'"
    )
