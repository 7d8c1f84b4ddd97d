"""Table of the models loaded in this process: a transform holds a small spec, weights are loaded once per (spec, device)."""

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
    """Description of a model without its weights; a few bytes when pickled.

    Attributes:
        kind: which loader reads it: "inpainter", "medsam", "validator", "controlnet", "semantic_controller" or "latent_screen".
        source: "tiny" (embedded), a local folder or file, a hub id "org/name@revision", or a handle of a live object.
        dtype: name of the floating type of the weights, e.g. "float32", "bfloat16", "float16".
        compile: whether ``torch.compile`` compiles the repeated blocks of the networks.
        trust_config: whether the config of a MONAI Bundle may be run to build its network.
    """

    kind: str
    source: str = "tiny"
    dtype: str = "float32"
    compile: bool = False
    trust_config: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch's type; ValueError for a name that is no floating type."""
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
    """Start a forked child with new locks and an empty table: it may inherit a locked lock and CUDA weights."""
    global _table, _table_lock, _forked
    _table, _table_lock, _forked = {}, threading.Lock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def spec_of(kind: str, model: Any, dtype: str = "float32", *, compile: bool = False, trust_config: bool = False) -> ModelSpec:
    """Spec of a user's ``model=``: a source string, a path, or a live object, which is kept in this process under a handle.

    >>> spec_of("inpainter", "tiny").source
    'tiny'
    >>> spec_of("validator", torch.nn.Conv2d(1, 1, 1)).source.startswith("object:Conv2d-")
    True
    """
    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, (str, Path)):
        return ModelSpec(kind, str(model), dtype, compile, trust_config)
    handle = f"{OBJECT_PREFIX}{type(model).__name__}-{os.getpid()}-{id(model):x}"
    _objects[handle] = model
    return ModelSpec(kind, handle, dtype, compile)


def shared_model(spec: ModelSpec, device: torch.device | str, load: Callable[[ModelSpec, torch.device], T]) -> T:
    """The model of a spec on a device; its loader ``load`` runs once per process, also with several threads.

    Raises:
        WorkerDeviceError: CUDA in a forked worker process.
    """
    device = torch.device(device)
    if _forked and (device.type == "cuda" or _is_on_gpu(_objects.get(spec.source))):
        place = device if device.type == "cuda" else "its GPU"
        raise WorkerDeviceError(
            f"model {spec.source!r} was requested on {place} inside the forked process {multiprocessing.current_process().name!r}; "
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


def _is_on_gpu(live: Any) -> bool:
    """Whether a live object, e.g. a pipeline or a network, has its weights on a GPU."""
    device = getattr(live, "device", None)
    if device is None and isinstance(live, torch.nn.Module):
        device = next((parameter.device for parameter in live.parameters()), None)
    return isinstance(device, torch.device) and device.type == "cuda"


def _numbered(device: torch.device) -> torch.device:
    """Replace "cuda" by the current GPU. A new thread starts on GPU 0; there the GPU that ``torchrun`` assigned is taken."""
    if device.type != "cuda" or device.index is not None:
        return device
    current = torch.cuda.current_device() if torch.cuda.is_available() else 0
    rank = os.environ.get("LOCAL_RANK", "")
    if current == 0 and rank.isdigit() and threading.current_thread() is not threading.main_thread():
        current = int(rank) if int(rank) < torch.cuda.device_count() else 0
    return torch.device("cuda", current)


def live_object(spec: ModelSpec) -> Any | None:
    """The object of a handle; None if the spec names a source.

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
    """Number of times this process has loaded the model (0 or 1)."""
    entry = _table.get((spec, str(_numbered(torch.device(device)))))
    return entry.loads if entry else 0


def clear() -> None:
    """Drop all loaded models of this process."""
    with _table_lock:
        _table.clear()
