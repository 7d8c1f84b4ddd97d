"""A process-wide table of loaded models: transforms hold a small spec, the weights are loaded once a (spec, device)."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from monai_diffaug.errors import ModelSourceError, WorkerDeviceError

__all__ = ["ModelSpec", "clear", "load_count", "shared_model", "spec_of", "tiny_folder"]

T = TypeVar("T")
OBJECT_PREFIX = "object:"


@dataclass(frozen=True)
class ModelSpec:
    """What a transform keeps of its model.

    Attributes:
        kind: the part of the package that loads it: "inpainter", "medsam" or "validator".
        source: "tiny" (embedded), a local folder or file, a hub id "org/name@revision", or a handle of a live object.
        dtype: name of the floating type of the weights, e.g. "float32", "bfloat16", "float16".
        compile: the blocks that the networks repeat go through ``torch.compile``.
    """

    kind: str
    source: str = "tiny"
    dtype: str = "float32"
    compile: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype must name a floating torch type such as 'float32' or 'bfloat16', got {self.dtype!r}")
        return dtype


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.model: Any = None
        self.loads = 0


_table: dict[tuple[ModelSpec, str], _Entry] = {}
_table_lock = threading.Lock()
_objects: dict[str, Any] = {}
_forked = False


def _forget_in_child() -> None:
    """A forked child may inherit a held lock and CUDA weights: it starts with fresh locks and an empty table."""
    global _table, _table_lock, _forked
    _table, _table_lock, _forked = {}, threading.Lock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def spec_of(kind: str, model: Any, dtype: str = "float32", *, compile: bool = False) -> ModelSpec:
    """The spec of what a user passed as ``model=``: a source string or path, or a live object, which the table keeps."""
    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, (str, Path)):
        return ModelSpec(kind, str(model), dtype, compile)
    handle = f"{OBJECT_PREFIX}{type(model).__name__}-{os.getpid()}-{id(model):x}"
    _objects[handle] = model
    return ModelSpec(kind, handle, dtype, compile)


def shared_model(spec: ModelSpec, device: torch.device | str, load: Callable[[ModelSpec, torch.device], T]) -> T:
    """The model of a spec on a device; ``load`` runs once a process, whichever thread comes first.

    Args:
        spec: what to load.
        device: where it shall live.
        load: the loader of that kind of model; for a live object it is given the object through ``live_object``.

    Raises:
        WorkerDeviceError: CUDA in a forked worker process.
    """
    device = torch.device(device)
    if _forked and (device.type == "cuda" or _is_on_gpu(_objects.get(spec.source))):
        place = device if device.type == "cuda" else "its GPU"
        raise WorkerDeviceError(
            f"model {spec.source!r} was asked for on {place} inside the forked process {multiprocessing.current_process().name!r}; "
            "CUDA cannot start there. Use num_workers=0 or ThreadDataLoader, multiprocessing_context='spawn', device='cpu' in "
            "the workers, or cache the result with CachedRandomd before the workers start"
        )
    device = _numbered(device)
    with _table_lock:
        entry = _table.setdefault((spec, str(device)), _Entry())
    with entry.lock:
        if entry.model is None:
            entry.model = load(spec, device)
            entry.loads += 1
    model: T = entry.model
    return model


def _is_on_gpu(given: Any) -> bool:
    """A live object, e.g. a pipeline or a network, has its weights on a GPU."""
    place = getattr(given, "device", None)
    if place is None and isinstance(given, torch.nn.Module):
        place = next((parameter.device for parameter in given.parameters()), None)
    return isinstance(place, torch.device) and place.type == "cuda"


def _numbered(device: torch.device) -> torch.device:
    """ "cuda" as the current GPU; threads start on the first one whatever the process has chosen, so there ``torchrun``'s choice counts."""
    if device.type != "cuda" or device.index is not None:
        return device
    current = torch.cuda.current_device() if torch.cuda.is_available() else 0
    chosen = os.environ.get("LOCAL_RANK", "")
    if current == 0 and chosen.isdigit() and threading.current_thread() is not threading.main_thread():
        current = int(chosen) if int(chosen) < torch.cuda.device_count() else 0
    return torch.device("cuda", current)


def live_object(spec: ModelSpec) -> Any | None:
    """The object behind a handle, None when the spec names a source.

    Raises:
        ModelSourceError: the handle belongs to another process.
    """
    if not spec.source.startswith(OBJECT_PREFIX):
        return None
    if spec.source not in _objects:
        raise ModelSourceError(
            f"{spec.source} is a live object of another process; pass a folder, a file or a hub id as model= to use it in spawned workers"
        )
    return _objects[spec.source]


def tiny_folder(part: str) -> Path:
    """Folder of an embedded model, e.g. ``tiny_folder("medsam")``."""
    return Path(__file__).resolve().parents[1] / "weights" / "tiny" / part


def load_count(spec: ModelSpec, device: torch.device | str = "cpu") -> int:
    """How often this process has loaded the model (0 or 1)."""
    entry = _table.get((spec, str(_numbered(torch.device(device)))))
    return entry.loads if entry else 0


def clear() -> None:
    """Drop all loaded models of this process."""
    with _table_lock:
        _table.clear()
