"""Hash of transforms by their options, for ``hash_transform`` of MONAI's ``PersistentDataset`` and similar data sets."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import threading
import types
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader
from monai.transforms import Randomizable
from torch import nn

from monai_diffaug.data.item_draws import DrawCounts
from monai_diffaug.edit.signature import MADE_AS
from monai_diffaug.models.registry import ModelSpec, live_object
from monai_diffaug.version import __version__

__all__ = ["transform_hashing"]

# attributes of a random transform that are drawn or counted, not options
STATE_OF_RANDOM = frozenset({"R", "_do_transform", "seed", "seeds", "scores", "statistics"})
SHOWN = frozenset({MADE_AS})  # the text of ``repr``
STATE_OF_READERS = frozenset({"filenames"})  # files that a reader has read last
LOCKS = (type(threading.Lock()), type(threading.RLock()))
STATE_TYPES = (DrawCounts, np.random.RandomState, np.random.Generator, torch.Generator, itertools.count, threading.local, *LOCKS)
CALLABLES = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, np.ufunc)
TEXT_TYPES = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype, slice, range)
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".json"})


def transform_hashing(transforms: Any) -> bytes:
    """Hash of transforms: equal in every process, before and after use, and different if an option differs.

    MONAI's ``pickle_hashing`` depends on which strings are the same object, and on the random numbers drawn so far. Here random states
    and counters are ignored. A model is hashed by its spec: the embedded model by this package's version, a file or folder by the
    names, sizes and times of its weights, a hub id by its text, a live network by its weights. A function is hashed by its code,
    defaults and closure, not by the globals that it uses. Use it as
    ``PersistentDataset(data, transform, cache_dir, hash_transform=transform_hashing)``.

    Args:
        transforms: a transform, or the list of cached transforms that ``PersistentDataset`` passes.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: an option of a type without stable content; the message names it.

    >>> from monai.transforms import RandFlipd
    >>> transform_hashing(RandFlipd("image", prob=0.5)) == transform_hashing(RandFlipd("image", prob=0.5).set_random_state(3))
    True
    >>> transform_hashing(RandFlipd("image", prob=0.5)) == transform_hashing(RandFlipd("image", prob=0.6))
    False
    """
    return _digest(transforms, "transforms", ()).hex().encode()


def _join(tag: str, *parts: bytes) -> bytes:
    state = hashlib.sha256(tag.encode() + b"\0")
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()


def _digest(value: Any, path: str, above: tuple[int, ...]) -> bytes:
    """SHA-256 of a value; ``path`` is its place in messages, ``above`` the identities of the containers around it."""
    if id(value) in above:
        return _join("cycle", str(len(above) - above.index(id(value))).encode())
    inside = (*above, id(value))
    plain = _plain(value)
    if plain is not None:
        return plain
    if isinstance(value, Mapping):
        pairs = [_join("pair", _digest(k, path, inside), _digest(v, f"{path}[{k!r}]", inside)) for k, v in value.items()]
        return _join("mapping", *sorted(pairs))
    if isinstance(value, (list, tuple, deque)):
        return _join("sequence", *(_digest(each, f"{path}[{i}]", inside) for i, each in enumerate(value)))
    if isinstance(value, (set, frozenset)):
        return _join("set", *sorted(_digest(each, path, inside) for each in value))
    if isinstance(value, ModelSpec):
        return _join("spec", *(_digest(each, path, inside) for each in (value.kind, value.dtype, _content_of(value))))
    if isinstance(value, nn.Module):
        return _join("network", _name(type(value)), repr(value).encode(), _digest(value.state_dict(), path, inside))
    if isinstance(value, CALLABLES):
        return _of_callable(value, path, inside)
    return _of_object(value, path, inside)


def _name(kind: Any) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


def _plain(value: Any) -> bytes | None:
    """Hash of a leaf value; None if the value is a container."""
    if isinstance(value, Enum):
        return _join("enum", _name(type(value)), value.name.encode())
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return _join("value", repr(value).encode())
    if isinstance(value, os.PathLike):
        return _join("path", str(value).encode())
    if isinstance(value, TEXT_TYPES):
        return _join("text", repr(value).encode())
    if isinstance(value, STATE_TYPES):
        return _join("state")
    if isinstance(value, type):
        return _join("class", _name(value))
    if isinstance(value, types.ModuleType):
        return _join("module", value.__name__.encode())
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).as_subclass(torch.Tensor)
        return _join("array", str(value.dtype).encode(), str(tuple(value.shape)).encode(), data.view(torch.uint8).numpy().tobytes())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _join("array", value.dtype.str.encode(), str(value.shape).encode(), np.ascontiguousarray(value).tobytes())
    return None


def _of_callable(function: Any, path: str, above: tuple[int, ...]) -> bytes:
    if isinstance(function, types.MethodType):
        return _join("method", _digest(function.__func__, path, above), _digest(function.__self__, path, above))
    if isinstance(function, functools.partial):
        return _join("partial", *(_digest(part, path, above) for part in (function.func, function.args, function.keywords)))
    if not isinstance(function, types.FunctionType):
        names = (str(getattr(function, name, "")).encode() for name in ("__module__", "__qualname__", "__name__"))
        owner = getattr(function, "__self__", None)  # the dictionary of {1: 2}.get; the module or class of a library's function
        bound = b"" if isinstance(owner, (types.ModuleType, type)) else _digest(owner, path, above)
        return _join("builtin", *names, bound)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    values = (function.__defaults__, function.__kwdefaults__, cells)
    return _join("function", _name(function), _of_code(function.__code__), *(_digest(each, path, above) for each in values))


def _of_code(code: types.CodeType) -> bytes:
    constants = [_of_code(each) if isinstance(each, types.CodeType) else _digest(each, "code", ()) for each in code.co_consts]
    return _join("code", code.co_code, repr((code.co_names, code.co_varnames)).encode(), *constants)


def _of_object(value: Any, path: str, above: tuple[int, ...]) -> bytes:
    """Hash of an object by its class and attributes, without the random state of transforms."""
    if is_dataclass(value):
        attributes = {field.name: getattr(value, field.name) for field in fields(value) if field.repr}
    elif hasattr(value, "__dict__"):
        attributes = dict(vars(value))
    else:
        return _join("reduced", _name(type(value)), _digest(_reduced(value, path), path, above))
    state = STATE_OF_RANDOM if isinstance(value, Randomizable) else STATE_OF_READERS if isinstance(value, ImageReader) else ()
    attributes = {name: each for name, each in attributes.items() if name not in state and name not in SHOWN}
    parts = [
        _join("attribute", name.encode(), _digest(each, f"{path}.{name}", above))
        for name, each in sorted(attributes.items())
        if not isinstance(each, STATE_TYPES)
    ]
    return _join("object", _name(type(value)), *parts)


def _reduced(value: Any, path: str) -> Any:
    """Content of an object without attributes, as pickle stores it."""
    try:
        reduced = value.__reduce_ex__(2)
    except TypeError as error:
        raise TypeError(
            f"{path} is a {type(value).__name__}, whose content cannot be read ({error}); pass a plain value, a function or a class "
            "with attributes instead"
        ) from error
    return reduced[1:] if isinstance(reduced, tuple) else reduced


def _content_of(spec: ModelSpec) -> Any:
    """Value that identifies the weights of a spec."""
    live = live_object(spec)
    if live is not None:
        return live if isinstance(live, nn.Module) else _parts_of(live) or live
    if spec.source == "tiny":
        return "tiny", __version__
    path = Path(spec.source).expanduser()
    if not path.exists():
        return spec.source
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.suffix in WEIGHT_SUFFIXES]
    return spec.source, [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _parts_of(live: Any) -> dict[str, Any]:
    """Networks and configurations of a live pipeline, without tokenizer and caches, which change with use."""
    parts: dict[str, Any] = {}
    for name, part in getattr(live, "__dict__", {}).items():
        if isinstance(part, nn.Module):
            parts[name] = part
        elif isinstance(getattr(part, "config", None), Mapping):
            parts[name] = dict(part.config)
    return parts
