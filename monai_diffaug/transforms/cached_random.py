"""``CachedRandomd``: run a random transform as a deterministic one, so that MONAI's caching data sets store its result."""

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
    """Make a random transform cacheable: its random numbers follow from (seed, item, draw) alone.

    CacheDataset, SmartCacheDataset, PersistentDataset and LMDBDataset cache everything before the first random transform. This
    wrapper does not count as random, so the wrapped transform is cached: a MedSAM mask costs one encoder call per item and not one per
    epoch, and SmartCacheDataset spreads the cost of diffusion over the epochs. Unlike a bare random transform in a cached part, no two
    items get the same random numbers.

    The draw is the number of earlier calls for the same item, by all copies of this instance in this process, modulo ``draws``.
    A cache calls once for each item that it computes, so a replay gives the same bytes for any number of init, replace or
    thread workers. Each process counts on its own: worker processes that are started again for each epoch repeat their draws,
    unless the result does not depend on the count (``draws=1``) or ``set_epoch`` was called before the epoch.

    Each call works on a copy of the wrapped transform, so any number of threads may call at the same time. State that the wrapped
    transform collects (``LatentValidated.statistics``, its dynamic threshold) is not carried from one call to the next.

    Args:
        transform: a random dictionary transform, or a ``Compose`` of several; anything with ``set_random_state``.
        seed: of the whole run. Give two instances that wrap the same class different seeds.
        id_key: the key that holds the item's identity: text, an integer, a path, or an image whose meta data name its file.
            Two items with one identity share their draws.
        draws: number of different results per item; 1 freezes the result, whichever process computes it. None means no limit.

    Raises:
        TypeError: ``transform`` is not random.
        ValueError: ``draws`` is less than 1.

    >>> from monai_diffaug import TextPromptd
    >>> prompt = CachedRandomd(TextPromptd("prompt", modality="MRI", anatomy="brain"), seed=0, id_key="id", draws=1)
    >>> prompt({"id": "patient-1"}) == prompt({"id": "patient-1"})
    True
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
        """The result of the wrapped transform.

        Raises:
            KeyError: the sample has no ``id_key``.
            TypeError: its value does not identify an item.
        """
        item = item_identity(data, self.id_key)
        draw = 0 if self.draws == 1 else self._counts.take(item)
        transform: Any = deepcopy(self.transform)
        transform.set_random_state(seed=self._seed_of(item, draw if self.draws is None else draw % self.draws))
        if not isinstance(transform, InvertibleTrait):
            return transform(data)
        traced = {key: _with_new_trace(value) for key, value in data.items()}
        result = transform(traced)
        _forget_instance(result, {id(traced[key]): value for key, value in data.items()})
        return result

    def inverse(self, data: Any) -> Any:
        """Undo the traced operations of the wrapped transform; the identity if it is not invertible."""
        if not isinstance(self.transform, InvertibleTrait):
            return data
        transform: Any = deepcopy(self.transform)
        return transform.inverse(data)

    def _seed_of(self, item: str, draw: int) -> int:
        """A uint32 that differs between wrapped classes, so that a mask and a flip of one item are not drawn alike."""
        name = type(self.transform).__qualname__
        digest = hashlib.sha256(repr((self.seed, name, item, self.epoch, draw)).encode()).digest()
        return int.from_bytes(digest[:4], "little")


CachedRandomD = CachedRandomDict = CachedRandomd


def _with_new_trace(value: Any) -> Any:
    """The same voxels with a copy of the meta data: a transform that is not triggered writes its trace into its input."""
    return MetaTensor(value.as_tensor()).copy_meta_from(value) if isinstance(value, MetaTensor) else value


def _forget_instance(result: Any, originals: Mapping[int, Any]) -> None:
    """Reset the instance in new traces, so that ``inverse`` accepts them: it was a copy that exists no longer.

    Values without a new trace are replaced by the originals; ``originals`` maps the identities of the copies to them.
    """
    for sample in result if isinstance(result, (list, tuple)) else [result]:
        items = sample if isinstance(sample, dict) else {None: sample}
        for key, value in items.items():
            if not isinstance(value, MetaTensor):
                continue
            original = originals.get(id(value))
            if original is not None and len(original.applied_operations) == len(value.applied_operations):
                items[key] = original
            else:
                reset_ops_id(value)
