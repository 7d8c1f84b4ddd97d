"""Bank of pre-computed edits of each sample, filled by a background thread, so that a draw costs almost no time."""

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
    """Pool of pre-computed edits per sample, filled by a background thread; a variant is replaced after ``uses`` draws.

    The first draw of a sample waits for its first variant; the others are made in the background, one at a time. Which of them already
    exist depends on timing. With ``background=False`` all are made at the first draw, so that the draws are reproducible. A variant
    depends only on the sample, the transform's settings, ``seed``, its slot and its generation.

    Copies share the bank. A pickle or a forked worker process starts with an empty bank of the same settings. A loader starts new
    workers in each epoch: with ``folder`` they share the variants and the counts of their uses.

    Args:
        transform: a random dictionary transform, or a ``Compose``, e.g. the transforms of mask and prompt and ``DiffusionLocalInpaintd``.
            It must return one sample on the same grid: load images before, crop and flip after.
        seed: of all variants.
        variants: number per sample.
        uses: draws after which a variant is replaced by a new one, i.e. one edit per ``uses`` samples. None never replaces.
        limit: maximum number of variants of all samples; the least recently used are removed.
        folder: of the stored variants (tensors, texts, numbers, and lists and dictionaries of them); None stores them in memory.
        id_key: key of the sample's identity (text, integer, path, or an image with its file name). None hashes the whole content,
            which takes milliseconds per megabyte.
        background: make variants in a thread of this process.

    Raises:
        TypeError: the transform is not random.
        ValueError: a number is less than 1.

    >>> from monai.transforms import RandGaussianNoised
    >>> bank = VariantBank(RandGaussianNoised("image", prob=1.0), seed=0, variants=2, uses=None, background=False)
    >>> images = [bank.draw({"image": torch.zeros(1, 4, 4)}, choice)["image"] for choice in range(4)]
    >>> torch.equal(images[0], images[2]), torch.equal(images[0], images[1])
    (True, False)
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
        self._reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> VariantBank:
        return self

    def __getstate__(self) -> dict[str, Any]:
        options = ("transform", "seed", "variants", "uses", "limit", "folder", "id_key", "background")
        return {name: getattr(self, name) for name in options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state.pop("transform"), **state)  # type: ignore[misc]

    def draw(self, data: Mapping[Hashable, Any], choice: int) -> dict[Hashable, Any]:
        """One of the sample's variants.

        Args:
            data: the sample; unchanged items are returned by reference.
            choice: any number; the variant is ``choice`` modulo the number of existing variants.

        Raises:
            TypeError: the transform returns several samples, or values that a folder cannot store.
            ValueError: the transform changes the grid or loads the image, or two samples have the same identity.
            OSError: the folder cannot be written.
            Exception: the transform's error while it made a variant of this sample.
        """
        self._after_fork()
        sample = self._key_of(data)
        ready = self._ready(sample)
        needed = self.variants if not self.background else 1
        for slot in range(self.variants):
            if len(ready) >= needed:
                break
            if slot not in ready:
                ready[slot] = self._make(data, VariantKey(sample, slot, self._generation(sample, slot)))
        slot = sorted(ready)[choice % len(ready)]
        values = self._stored().get(ready[slot])
        if values is None:  # removed by the limit in the meantime, or a damaged file
            values = self._values(data, ready[slot])
            self._stored().put(ready[slot], values)
        self._plan(data, ready, slot)
        return _restored(values, data)

    def close(self) -> None:
        """Wait for the variant that the background thread is making, and drop the remaining orders; the bank stays usable."""
        self._after_fork()
        self._orders.close()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._orders = VariantOrders(self._fulfil)
        self._used: dict[tuple[str, int], tuple[int, int]] = {}  # (sample, slot) -> newest generation and its uses
        self._failed: dict[str, Exception] = {}

    def _after_fork(self) -> None:
        """Reset in a forked child: it has no background thread, and the lock may be locked."""
        if self._pid != os.getpid():
            self._store = None
            self._reset()

    def _stored(self) -> VariantStore:
        if self._store is None:
            self._store = MemoryStore(self.limit) if self.folder is None else FolderStore(self.folder, self.limit)
        return self._store

    def _key_of(self, data: Mapping[Hashable, Any]) -> str:
        """Hash (40 hexadecimal digits) of content or identity, settings and seed."""
        if self._settings is None:
            self._settings = transform_hashing(self.transform).decode()
        if self.id_key is not None:
            content = item_identity(data, self.id_key)
        else:
            with_affines = {k: (v, v.affine) if isinstance(v, MetaTensor) else v for k, v in data.items()}
            content = transform_hashing(with_affines).decode()
        return hashlib.sha256(repr((content, self._settings, self.seed)).encode()).hexdigest()[:40]

    def _ready(self, sample: str) -> dict[int, VariantKey]:
        """Slot -> its newest variant, for the slots that have one."""
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
        """Items that the transform adds or changes, as plain tensors and values."""
        transform: Any = deepcopy(self.transform)
        digest = hashlib.sha256(repr(tuple(key)).encode()).digest()
        transform.set_random_state(seed=int.from_bytes(digest[:4], "little"))
        result = transform(dict(data))
        if not isinstance(result, Mapping):
            raise TypeError(f"a bank keeps one sample for one, the transform made a {type(result).__name__} of it; crop after DrawVariantd")
        self.made += 1
        changed = {k: v for k, v in result.items() if k not in data or v is not data[k]}
        for name, value in changed.items():
            _require_grid(name, value, data)
        return {name: _plain(value) for name, value in changed.items()}

    def _plan(self, data: Mapping[Hashable, Any], ready: Mapping[int, VariantKey], slot: int) -> None:
        """Count the use, and order a missing variant, or a new one if this has reached its number of uses."""
        key = ready[slot]
        with self._lock:
            generation, count = self._used.get((key.sample, slot), (key.generation, 0))
            count = count + 1 if generation == key.generation else 1
            self._used[key.sample, slot] = (key.generation, count)
        expired = self.uses is not None and max(count, self._stored().used(key)) >= self.uses
        missing = next((s for s in range(self.variants) if s not in ready), None)
        if expired:
            self._order(data, key._replace(generation=key.generation + 1))
        elif missing is not None:
            self._order(data, VariantKey(key.sample, missing, self._generation(key.sample, missing)))

    def _order(self, data: Mapping[Hashable, Any], key: VariantKey) -> None:
        if self.background:
            self._orders.place(data, key)
        else:
            self._replace(data, key)

    def _fulfil(self, data: Mapping[Hashable, Any], key: VariantKey) -> None:
        """Make an order in the background thread; the next draw of the sample raises its error."""
        try:
            self._replace(data, key)
        except Exception as error:
            logger.warning("no variant of a sample: %s", error)
            self._failed[key.sample] = error

    def _replace(self, data: Mapping[Hashable, Any], key: VariantKey) -> None:
        """Make a variant, then remove the older ones of its slot."""
        self._make(data, key)
        for older in self._stored().known(key.sample):
            if older.slot == key.slot and older.generation < key.generation:
                self._stored().discard(older)
        with self._lock:
            self._used[key.sample, key.slot] = (key.generation, 0)


class DrawVariantd(RandomizableTransform, Described):
    """Replace each sample by one of its variants in a bank: a random transform that needs no model call for most samples.

    A variant may be unedited: the bank's transform decides by its ``prob``, and the keys are the same in both cases.

    Args:
        bank: of the variants, e.g. ``VariantBank(Compose([MedSAMMaskd(...), TextPromptd(...), DiffusionLocalInpaintd(...)]), seed=0)``.

    >>> from monai.transforms import RandGaussianNoised
    >>> draw = DrawVariantd(VariantBank(RandGaussianNoised("image", prob=1.0), seed=0, background=False)).set_random_state(seed=1)
    >>> draw({"image": torch.zeros(1, 4, 4), "label": 3})["label"]
    3
    """

    def __init__(self, bank: VariantBank) -> None:
        RandomizableTransform.__init__(self, 1.0)
        self.bank = bank
        self.choice = 0

    def randomize(self, data: Any | None = None) -> None:
        """Draw the (always true) trigger and the variant index."""
        super().randomize(data)
        self.choice = draw_seed(self.R)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return self.bank.draw(data, self.choice)


DrawVariantD = DrawVariantDict = DrawVariantd


def _plain(value: Any) -> Any:
    """The value in types that can be stored and read without running code; arrays become tensors on the CPU, copied."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, Tensor):
        tensor = value.as_tensor() if isinstance(value, MetaTensor) else value
        return tensor.detach().cpu().clone()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):
        return str.__str__(value)  # the text of a StrEnum
    if isinstance(value, Mapping):
        return {_plain(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(_plain(each) for each in value)
    return deepcopy(value)


def _image_of(data: Mapping[Hashable, Any]) -> Any:
    """The first item with a grid, (C, H, W[, D]); None if there is none."""
    return next((value for value in data.values() if _has_grid(value)), None)


def _has_grid(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim >= 3


def _require_grid(name: Hashable, value: Any, data: Mapping[Hashable, Any]) -> None:
    """Raise ValueError for an image on another grid than the sample's: only voxels are stored, so it could not be restored."""
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
    """The sample with the values of a variant, each with the type and meta data of the item that it replaces."""
    result = dict(data)
    image = _image_of(data)
    for key, value in values.items():
        before = data.get(key)
        if isinstance(value, Tensor):
            if _has_grid(value) and _has_grid(before):
                _require_shape(key, value, before, "two samples have the same id_key; leave it out, or give each an id of its own")
            like = before if isinstance(before, (Tensor, np.ndarray)) else image if value.ndim >= 3 else None
            tensor = value.clone()
            result[key] = tensor if like is None else convert_to_dst_type(tensor, like, dtype=tensor.dtype)[0]
        else:
            result[key] = deepcopy(value)
    return result
