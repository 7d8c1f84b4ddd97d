"""``CachedRandomd``: any random transform as a deterministic one, so that MONAI's caching data sets keep its result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from copy import deepcopy
from typing import Any

from monai.data import MetaTensor
from monai.transforms import InvertibleTransform
from monai.transforms.traits import InvertibleTrait
from monai.transforms.utils import reset_ops_id

from monai_diffaug.data.item_draws import DrawCounts, item_identity
from monai_diffaug.edit.signature import Described

__all__ = ["CachedRandomD", "CachedRandomDict", "CachedRandomd"]


class CachedRandomd(InvertibleTransform, Described):
    """Run a random transform with random numbers that follow from (seed, item, draw) alone, as a cacheable transform.

    CacheDataset, SmartCacheDataset, PersistentDataset and LMDBDataset cache everything before the first random transform. This
    wrapper is none, so what it wraps is cached: a MedSAM mask costs one encoder call an item and not one an epoch, and
    SmartCacheDataset spreads the cost of diffusion over the epochs. Unlike a bare random transform in a cached part, no two
    items get the same random numbers.

    The draw is the number of earlier calls for the same item, by all copies of this instance in this process, modulo ``draws``.
    A cache calls once for each item that it computes, so a replay gives the same bytes for any number of init, replace or
    thread workers. Each process counts for itself: worker processes that are started anew for each epoch repeat their draws,
    unless the result does not depend on the count (``draws=1``) or ``set_epoch`` was called before the epoch.

    Each call works on a copy of the wrapped transform, so any number of threads may call at once; what the wrapped transform
    would count or learn (``LatentValidated.statistics``, its dynamic threshold) is not carried from one call to the next.

    Args:
        transform: a random dictionary transform, or a ``Compose`` of several; anything with ``set_random_state``.
        seed: of the whole run. Give two instances that wrap the same class different seeds.
        id_key: the key that holds the item's identity: text, an integer, a path, or an image whose meta data name its file.
            Two items with one identity share their draws.
        draws: number of different results that an item can have; 1 freezes it, in whichever process it is computed.
            None means no limit.

    Raises:
        TypeError: ``transform`` is not random.
        ValueError: ``draws`` is less than 1.
    """

    def __init__(self, transform: Callable[[Any], Any], *, seed: int, id_key: Hashable, draws: int | None = None) -> None:
        if not callable(transform) or not hasattr(transform, "set_random_state"):
            raise TypeError(
                f"CachedRandomd wraps a random transform, one with set_random_state; got {type(transform).__name__}. Deterministic "
                "transforms are cached as they are"
            )
        if draws is not None and draws < 1:
            raise ValueError(f"draws must be 1 or more, or None for no limit, got {draws}")
        self.transform = transform
        self.seed = int(seed)
        self.id_key = id_key
        self.draws = draws
        self.epoch = 0
        self._counts = DrawCounts()

    def set_epoch(self, epoch: int) -> None:
        """Start another series of draws, as ``DistributedSampler.set_epoch`` does; call it in the main process before the epoch."""
        self.epoch = int(epoch)
        self._counts = DrawCounts()

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        """What the wrapped transform makes of the sample.

        Raises:
            KeyError: the sample has no ``id_key``.
            TypeError: its value identifies nothing.
        """
        item = item_identity(data, self.id_key)
        draw = 0 if self.draws == 1 else self._counts.take(item)
        own: Any = deepcopy(self.transform)
        own.set_random_state(seed=self._seed_of(item, draw if self.draws is None else draw % self.draws))
        if not isinstance(own, InvertibleTrait):
            return own(data)
        traced = {key: _with_own_trace(value) for key, value in data.items()}
        result = own(traced)
        _forget_instance(result, {id(traced[key]): value for key, value in data.items()})
        return result

    def inverse(self, data: Any) -> Any:
        """Undo what the wrapped transform has traced; the identity when it is not invertible."""
        if not isinstance(self.transform, InvertibleTrait):
            return data
        own: Any = deepcopy(self.transform)
        return own.inverse(data)

    def _seed_of(self, item: str, draw: int) -> int:
        """A uint32 that differs between wrapped classes, so that a mask and a flip of one item are not drawn alike."""
        name = type(self.transform).__qualname__
        digest = hashlib.sha256(repr((self.seed, name, item, self.epoch, draw)).encode()).digest()
        return int.from_bytes(digest[:4], "little")


CachedRandomD = CachedRandomDict = CachedRandomd


def _with_own_trace(value: Any) -> Any:
    """The same voxels with meta data of their own: a transform that is not triggered writes its trace into the image that it was given."""
    return MetaTensor(value.as_tensor()).copy_meta_from(value) if isinstance(value, MetaTensor) else value


def _forget_instance(result: Any, given: Mapping[int, Any]) -> None:
    """Traces name the instance that made them; that was a copy, so the check of the inverse is told to skip them.

    What has no new trace is handed on as it was given: ``given`` holds the originals by the identities of their copies.
    """
    for sample in result if isinstance(result, (list, tuple)) else [result]:
        held = sample if isinstance(sample, dict) else {None: sample}
        for key, value in held.items():
            if not isinstance(value, MetaTensor):
                continue
            original = given.get(id(value))
            if original is not None and len(original.applied_operations) == len(value.applied_operations):
                held[key] = original
            else:
                reset_ops_id(value)
