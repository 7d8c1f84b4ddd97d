"""A bounded bank of edited variants of each sample, filled in the background and drawn from in no time."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import RandomizableTransform
from monai.utils import convert_to_dst_type
from torch import Tensor

from monai_diffaug.data.item_draws import item_identity
from monai_diffaug.data.transform_hash import transform_hashing
from monai_diffaug.data.variant_orders import VariantOrders
from monai_diffaug.data.variant_store import FolderStore, MemoryStore, VariantKey, VariantStore
from monai_diffaug.edit.signature import Described
from monai_diffaug.sampling.seeding import draw_seed

__all__ = ["DrawVariantD", "DrawVariantDict", "DrawVariantd", "VariantBank"]

logger = logging.getLogger(__name__)


class VariantBank(Described):
    """Edited variants of each sample that comes by, made by a thread in the background and replaced after so many uses.

    The first draw of a sample waits for its first variant; the others follow in the background, one at a time. Which of them are
    there already depends on timing; with ``background=False`` all are made at the first draw, and the same draws always give the same.
    A variant depends on the sample, the transform's settings, ``seed``, its place and its generation alone.

    Copies are the same bank. A pickle or a forked worker process starts with an empty bank of the same settings, and a loader starts its
    workers anew for each epoch: with ``folder`` they share what they make, and the count of its uses.

    Args:
        transform: a random dictionary transform, or a ``Compose`` of several, whose results are kept: ``DiffusionLocalInpaintd``, say,
            with what makes its mask and prompt. It must make one sample of one and leave it on its grid: load before, crop and flip after.
        seed: of all variants.
        variants: kept of each sample.
        uses: draws after which a variant is replaced by a new one: one edit for so many samples. None never replaces.
        limit: variants kept in all; those not used for longest go.
        folder: keep them there (tensors, texts, numbers, and lists and dictionaries of them), None in memory.
        id_key: the key of the sample's identity (text, integer, path, or an image that knows its file). None hashes the whole content,
            which costs milliseconds a megabyte.
        background: make variants in a thread of this process.

    Raises:
        TypeError: the transform is not random.
        ValueError: a number is less than 1.
    """

    def __init__(
        self,
        transform: Callable[[Any], Any],
        *,
        seed: int,
        variants: int = 4,
        uses: int | None = 10,
        limit: int = 1024,
        folder: str | Path | None = None,
        id_key: Hashable | None = None,
        background: bool = True,
    ) -> None:
        if not callable(transform) or not hasattr(transform, "set_random_state"):
            raise TypeError(f"a bank holds results of a random transform, one with set_random_state; got {type(transform).__name__}")
        for name, number in (("variants", variants), ("uses", uses), ("limit", limit)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        self.transform = transform
        self.seed, self.variants, self.uses, self.limit = int(seed), variants, uses, limit
        self.folder = None if folder is None else str(folder)
        self.id_key = id_key
        self.background = background
        self.made = 0
        self._store: VariantStore | None = None
        self._settings: str | None = None
        self._start_afresh()

    def __deepcopy__(self, memo: dict[int, Any]) -> VariantBank:
        return self

    def __getstate__(self) -> dict[str, Any]:
        kept = ("transform", "seed", "variants", "uses", "limit", "folder", "id_key", "background")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state.pop("transform"), **state)  # type: ignore[misc]

    def draw(self, data: Mapping[Hashable, Any], choice: int) -> dict[Hashable, Any]:
        """One of the sample's variants.

        Args:
            data: the sample; what the variant does not change is handed on by reference.
            choice: any number; taken modulo the variants that are there.

        Raises:
            TypeError: the transform makes several samples of one, or a folder cannot hold what it makes.
            ValueError: the transform changes the grid or loads the image, or two samples have one identity.
            OSError: the folder cannot be written.
            Exception: whatever the transform raised when it was asked for a variant of this sample.
        """
        self._after_fork()
        sample = self._key_of(data)
        ready = self._ready(sample)
        wanted = self.variants if not self.background else 1
        for slot in range(self.variants):
            if len(ready) >= wanted:
                break
            if slot not in ready:
                ready[slot] = self._make(data, VariantKey(sample, slot, self._generation(sample, slot)))
        slot = sorted(ready)[choice % len(ready)]
        values = self._stored().get(ready[slot])
        if values is None:  # evicted in between, or a damaged file
            values = self._values(data, ready[slot])
            self._stored().put(ready[slot], values)
        self._plan(data, ready, slot)
        return _restored(values, data)

    def close(self) -> None:
        """Wait for the variant that is being made in the background and drop the orders behind it; the bank stays usable."""
        self._after_fork()
        self._orders.close()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._orders = VariantOrders(self._fulfil)
        self._used: dict[tuple[str, int], tuple[int, int]] = {}  # (sample, slot) -> the newest generation and its uses
        self._failed: dict[str, Exception] = {}

    def _after_fork(self) -> None:
        """A forked child has no thread and may hold a locked lock."""
        if self._pid != os.getpid():
            self._store = None
            self._start_afresh()

    def _stored(self) -> VariantStore:
        if self._store is None:
            self._store = MemoryStore(self.limit) if self.folder is None else FolderStore(self.folder, self.limit)
        return self._store

    def _key_of(self, data: Mapping[Hashable, Any]) -> str:
        """40 hexadecimal digits of content (or identity), settings and seed."""
        if self._settings is None:
            self._settings = transform_hashing(self.transform).decode()
        if self.id_key is not None:
            content = item_identity(data, self.id_key)
        else:
            placed = {k: (v, v.affine) if isinstance(v, MetaTensor) else v for k, v in data.items()}
            content = transform_hashing(placed).decode()
        return hashlib.sha256(repr((content, self._settings, self.seed)).encode()).hexdigest()[:40]

    def _ready(self, sample: str) -> dict[int, VariantKey]:
        """The newest variant in each slot that has one."""
        error = self._failed.pop(sample, None)
        if error is not None:
            raise error
        newest: dict[int, VariantKey] = {}
        for key in self._stored().known(sample):
            if key.slot < self.variants and key.generation >= newest.get(key.slot, key).generation:
                newest[key.slot] = key
        return newest

    def _generation(self, sample: str, slot: int) -> int:
        return self._used.get((sample, slot), (0, 0))[0]

    def _make(self, data: Mapping[Hashable, Any], key: VariantKey) -> VariantKey:
        self._stored().put(key, self._values(data, key))
        return key

    def _values(self, data: Mapping[Hashable, Any], key: VariantKey) -> dict[Hashable, Any]:
        """What the transform adds to or changes in the sample, as plain tensors and values."""
        own: Any = deepcopy(self.transform)
        digest = hashlib.sha256(repr(tuple(key)).encode()).digest()
        own.set_random_state(seed=int.from_bytes(digest[:4], "little"))
        result = own(dict(data))
        if not isinstance(result, Mapping):
            raise TypeError(f"a bank keeps one sample for one, the transform made a {type(result).__name__} of it; crop after DrawVariantd")
        self.made += 1
        changed = {k: v for k, v in result.items() if k not in data or v is not data[k]}
        for name, value in changed.items():
            _require_grid(name, value, data)
        return {name: _plain(value) for name, value in changed.items()}

    def _plan(self, data: Mapping[Hashable, Any], ready: Mapping[int, VariantKey], slot: int) -> None:
        """Count the use, and order what is missing or worn out."""
        key = ready[slot]
        with self._lock:
            generation, count = self._used.get((key.sample, slot), (key.generation, 0))
            count = count + 1 if generation == key.generation else 1
            self._used[key.sample, slot] = (key.generation, count)
        worn = self.uses is not None and max(count, self._stored().used(key)) >= self.uses
        missing = next((s for s in range(self.variants) if s not in ready), None)
        if worn:
            self._order(data, key._replace(generation=key.generation + 1))
        elif missing is not None:
            self._order(data, VariantKey(key.sample, missing, self._generation(key.sample, missing)))

    def _order(self, data: Mapping[Hashable, Any], key: VariantKey) -> None:
        if self.background:
            self._orders.place(data, key)
        else:
            self._replace(data, key)

    def _fulfil(self, data: Mapping[Hashable, Any], key: VariantKey) -> None:
        """An order in the background; the next draw of the sample raises its error in a thread that listens."""
        try:
            self._replace(data, key)
        except Exception as error:
            logger.warning("no variant of a sample: %s", error)
            self._failed[key.sample] = error

    def _replace(self, data: Mapping[Hashable, Any], key: VariantKey) -> None:
        """Make a variant, then drop the older ones of its slot."""
        self._make(data, key)
        for older in self._stored().known(key.sample):
            if older.slot == key.slot and older.generation < key.generation:
                self._stored().discard(older)
        with self._lock:
            self._used[key.sample, key.slot] = (key.generation, 0)


class DrawVariantd(RandomizableTransform, Described):
    """Replace each sample by one of its variants in a bank: a random transform that costs no model call most of the time.

    A variant need not be an edit: the chance of that is the wrapped transform's own ``prob``, and the keys are the same either way.

    Args:
        bank: where the variants are.

    Example:
        ``DrawVariantd(VariantBank(Compose([MedSAMMaskd(...), TextPromptd(...), DiffusionLocalInpaintd(...)]), seed=0, folder="bank"))``
    """

    def __init__(self, bank: VariantBank) -> None:
        RandomizableTransform.__init__(self, 1.0)
        self.bank = bank
        self.choice = 0

    def randomize(self, data: Any | None = None) -> None:
        """Draw the coin, which always falls on its face, and the choice."""
        super().randomize(data)
        self.choice = draw_seed(self.R)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return self.bank.draw(data, self.choice)


DrawVariantD = DrawVariantDict = DrawVariantd


def _plain(value: Any) -> Any:
    """A value that can be stored and read back without running code; arrays become tensors on the CPU that own their memory."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, Tensor):
        tensor = value.as_tensor() if isinstance(value, MetaTensor) else value
        return tensor.detach().cpu().clone()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):
        return str.__str__(value)  # an enum of texts as its text
    if isinstance(value, Mapping):
        return {_plain(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(_plain(each) for each in value)
    return deepcopy(value)


def _image_of(data: Mapping[Hashable, Any]) -> Any:
    """The first value that has a grid, (C, H, W[, D]); None without one."""
    return next((value for value in data.values() if _has_grid(value)), None)


def _has_grid(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim >= 3


def _require_grid(name: Hashable, value: Any, data: Mapping[Hashable, Any]) -> None:
    """Raise ValueError for an image that cannot be put back into the sample: only its voxels are kept."""
    if not _has_grid(value):
        return
    like = data[name] if _has_grid(data.get(name)) else _image_of(data)
    if like is None and isinstance(value, MetaTensor):
        raise ValueError(f"the bank's transform made {name!r} of a sample without an image; load images before DrawVariantd")
    if like is data.get(name):
        _require_shape(name, value, like, "the bank's transform changed its grid; crop, pad and resample before or after DrawVariantd")
    if isinstance(value, MetaTensor) and isinstance(like, MetaTensor):
        before, after = like.affine.detach().cpu(), value.affine.detach().cpu()
        if before.shape != after.shape or not torch.allclose(before, after):
            raise ValueError(f"the bank's transform moved {name!r} to another affine; flip, turn and resample after DrawVariantd")


def _require_shape(name: Hashable, value: Any, like: Any, why: str) -> None:
    if tuple(value.shape[1:]) != tuple(like.shape[1:]):
        raise ValueError(f"{name!r} of the variant is {tuple(value.shape)}, of the sample {tuple(like.shape)}: {why}")


def _restored(values: Mapping[Hashable, Any], data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """The sample with a variant's values, each in the type and with the meta data of what it replaces."""
    result = dict(data)
    image = _image_of(data)
    for key, value in values.items():
        before = data.get(key)
        if isinstance(value, Tensor):
            if _has_grid(value) and _has_grid(before):
                _require_shape(key, value, before, "two samples have the same id_key; leave it out, or give each an id of its own")
            like = before if isinstance(before, (Tensor, np.ndarray)) else image if value.ndim >= 3 else None
            copied = value.clone()
            result[key] = copied if like is None else convert_to_dst_type(copied, like, dtype=copied.dtype)[0]
        else:
            result[key] = deepcopy(value)
    return result
