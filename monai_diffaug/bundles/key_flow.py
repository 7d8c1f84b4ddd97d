"""Follow the keys through a chain of transforms: a key that is read must have been loaded or written before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai.transforms import CopyItemsd, DeleteItemsd, LoadImaged, MapTransform, SelectItemsd
from monai.transforms.compose import Compose

from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMaskd
from monai_diffaug.transforms.place_mask import PlaceMaskd
from monai_diffaug.transforms.text_prompt import TextPromptd
from monai_diffaug.transforms.transplant_lesiond import TransplantLesiond

__all__ = ["key_faults"]

# options of MONAI's transforms that add keys
KEY_MAKERS = ("new_key_prefix", "output_postfixes", "output_key", "output_keys", "new_key", "prefix")

# options of this package's transforms that name a key to read -> it holds an array
OPTIONS_READ = {"label_key": True, "control_key": True, "region_key": True, "group_key": False, "prompt_key": False}


@dataclass(frozen=True)
class _Need:
    """A key that a transform reads.

    Attributes:
        key: its name.
        option: the option that names it, e.g. "mask_key".
        writer: the transform that usually writes it; None for keys of the data.
        is_array: it comes from a file or a transform, never as plain text in the item.
    """

    key: str
    option: str
    writer: type | None = None
    is_array: bool = True


@dataclass
class _Known:
    """Knowledge about the keys of a sample between two transforms."""

    keys: set[str]
    is_complete: bool  # there are no other keys
    arrays_are_loaded: bool = False  # LoadImaged has run: arrays are under its keys, or were written later
    removed: dict[str, str] = field(default_factory=dict)


def key_faults(chain: Compose, data_keys: set[str] | None) -> Iterator[tuple[Any, str]]:
    """(transform, message) for each key that is read but cannot be there.

    Args:
        chain: the transforms of a data set, nested or not.
        data_keys: keys that every data item has, None if they are unknown. A key that an unknown item may hold is no fault.
    """
    steps = list(_steps(chain))
    known = _Known(set(data_keys or ()), is_complete=data_keys is not None)
    for position, step in enumerate(steps):
        earlier, later = steps[:position], steps[position + 1 :]
        for need in _needs(step):
            message = _fault(need, known, earlier, later)
            if message:
                yield step, message
        if isinstance(step, LatentValidated):
            yield from ((step, message) for message in _original_faults(step, earlier))
        _advance(known, step)


def _steps(chain: Compose) -> Iterator[Any]:
    for step in chain.transforms:
        step = getattr(step, "transform", step) if type(step).__module__.startswith("monai_diffaug.") else step
        if isinstance(step, Compose):
            yield from _steps(step)
        else:
            yield step


def _keys(step: Any) -> tuple[str, ...]:
    return tuple(str(key) for key in getattr(step, "keys", ()))


def _needs(step: Any) -> Iterator[_Need]:
    """The keys that a step reads: for this package's transforms of each option, for MONAI's transforms those in ``keys``."""
    if not isinstance(step, MapTransform) or isinstance(step, TextPromptd):
        return
    if not step.allow_missing_keys:
        for key in _keys(step):
            yield _Need(key, "keys")
    if isinstance(step, LatentValidated) and step.inpaint is not None:
        yield from _needs(step.inpaint)
    elif isinstance(step, LatentValidated):
        yield _Need(step.mask_key, "mask_key", MedSAMMaskd)
        for key in _keys(step):
            yield _Need(step.record_key(key), "the record", DiffusionLocalInpaintd)
    elif isinstance(step, DiffusionLocalInpaintd):
        yield _Need(step.mask_key, "mask_key", MedSAMMaskd)
        yield _Need(step.prompt_key, "prompt_key", TextPromptd, is_array=False)
    for option, is_array in OPTIONS_READ.items():
        item_key = getattr(step, option, None)
        if isinstance(step, _readers_of(option)) and isinstance(item_key, str):
            yield _Need(item_key, option, is_array=is_array)


def _readers_of(option: str) -> tuple[type, ...]:
    """Classes that read the key which an option names."""
    if option == "group_key":
        return (TransplantLesiond,)
    if option in ("region_key", "prompt_key"):
        return (TransplantLesiond, PlaceMaskd)
    return (MedSAMMaskd, DiffusionLocalInpaintd, TransplantLesiond, PlaceMaskd)


def _writes(step: Any) -> tuple[str, ...]:
    """Keys that a step adds."""
    if isinstance(step, MedSAMMaskd):
        return tuple(step.mask_keys)
    if isinstance(step, PlaceMaskd):
        return (step.mask_key,)
    if isinstance(step, TextPromptd):
        return _keys(step)
    if isinstance(step, DiffusionLocalInpaintd):
        return tuple(step.record_key(key) for key in _keys(step))
    if isinstance(step, TransplantLesiond):
        return (*(step.record_key(key) for key in _keys(step)), step.mask_key)
    if isinstance(step, LatentValidated) and step.inpaint is not None:
        return _writes(step.inpaint)
    if isinstance(step, CopyItemsd):
        return tuple(map(str, step.names))
    name = getattr(step, "name", None)  # e.g. ConcatItemsd
    return (name,) if isinstance(name, str) else ()


def _named(step: Any) -> set[str]:
    """Every key that one of this package's transforms names in an option, read or written."""
    if not type(step).__module__.startswith("monai_diffaug."):
        return set()
    options = {**vars(step), "control_key": getattr(step, "control_key", None)}
    return {value for name, value in options.items() if name.endswith("_key") and isinstance(value, str)}


def _fault(need: _Need, known: _Known, earlier: Sequence[Any], later: Sequence[Any]) -> str:
    """The fault of a key that is read; empty if there is none or if it cannot be known."""
    option = f"{need.option} {need.key!r}" if need.option == "the record" else f"{need.option}={need.key!r}"
    loaders = [isinstance(step, LoadImaged) and need.key in _keys(step) for step in (*earlier, *later)]
    if need.is_array and any(loaders) and not any(loaders[: len(earlier)]) and need.option != "keys":
        return f"{option} is a file name here: LoadImaged reads it only later; move that before"
    if need.key in known.keys:
        return ""
    if need.key in known.removed:
        return f"{option} was removed before by {known.removed[need.key]}"
    late = [type(step).__name__ for step in later if need.key in _writes(step)]
    if late:
        return f"{option} is written only later, by {late[0]}; move that before"
    written = sorted(key for step in earlier if need.writer and isinstance(step, need.writer) for key in _writes(step))
    if written and need.writer is not None:
        return f"{option} is written by no earlier transform; {need.writer.__name__} writes {', '.join(map(repr, written))}"
    if known.is_complete or need.option == "the record" or (need.is_array and known.arrays_are_loaded and need.option != "keys"):
        hint = f"; put {need.writer.__name__} before, or name the key that holds it" if need.writer is not None else ""
        keys = f" (the sample has {', '.join(sorted(known.keys))})" if known.keys else ""
        return f"{option} is written by no earlier transform{keys}{hint}"
    return ""


def _original_faults(step: LatentValidated, earlier: Sequence[Any]) -> Iterator[str]:
    if step.inpaint is not None or step.on_reject != "original":
        return
    for before in earlier:
        if isinstance(before, DiffusionLocalInpaintd) and not before.keep_original and set(_keys(before)) & set(_keys(step)):
            yield "on_reject='original' needs keep_original: true on the DiffusionLocalInpaintd before"


def _advance(known: _Known, step: Any) -> None:
    if isinstance(step, SelectItemsd):
        known.removed.update(dict.fromkeys(known.keys - set(_keys(step)), "SelectItemsd"))
        known.keys &= set(_keys(step))
        known.is_complete = True
    elif isinstance(step, DeleteItemsd):
        known.removed.update(dict.fromkeys(_keys(step), "DeleteItemsd"))
        known.keys -= set(_keys(step))
    elif isinstance(step, MapTransform):
        new = {*_keys(step), *_writes(step), *_named(step)}
        known.keys |= new
        for key in new:
            known.removed.pop(key, None)
        known.arrays_are_loaded |= isinstance(step, LoadImaged)
        if not type(step).__module__.startswith(("monai.", "monai_diffaug.")) or any(getattr(step, name, None) for name in KEY_MAKERS):
            known.is_complete = known.arrays_are_loaded = False
    else:
        # a plain function, or a transform without keys, may add anything
        known.is_complete = known.arrays_are_loaded = False
