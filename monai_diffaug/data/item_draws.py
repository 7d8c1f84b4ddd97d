"""Identity of the items of a data set, and the number of draws of each item."""

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
    """Number of draws of each item in this process: copies share the counts, a pickle starts at zero.

    It needs no lock, which a forked child could inherit locked: ``dict.setdefault`` and ``next`` of a ``count`` are atomic.

    >>> counts = DrawCounts()
    >>> [counts.take(item) for item in ("a", "b", "a")]
    [0, 0, 1]
    """

    def __init__(self) -> None:
        self._counts: dict[str, Iterator[int]] = {}

    def take(self, item: str) -> int:
        """Number of earlier draws of the item; counts this one."""
        return next(self._counts.setdefault(item, itertools.count()))

    def __deepcopy__(self, memo: dict[int, Any]) -> DrawCounts:
        return self

    def __reduce__(self) -> tuple[type[DrawCounts], tuple[()]]:
        return DrawCounts, ()


def item_identity(data: Mapping[Hashable, Any], id_key: Hashable) -> str:
    """Text that identifies a sample.

    Raises:
        KeyError: the sample has no ``id_key``.
        TypeError: its value is not text, an integer, a path or an image with its file name.

    >>> item_identity({"id": 7}, "id")
    '7'
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
