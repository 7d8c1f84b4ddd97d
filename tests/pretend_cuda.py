"""A GPU for tests on machines that have none: tensors on the CPU that say they are on ``cuda`` and refuse what such tensors refuse.

``torch._subclasses.fake_tensor.FakeTensorMode`` does this for shapes alone: it stops at the first ``int(tensor)``, ``nonzero`` or
``as_subclass`` (MetaTensor), and an edit is made of those. Here every tensor keeps its values. A storage carries a device as a label:
two torch modes read and write the labels, and raise where CUDA would:

* an operation on tensors of two devices (CPU scalars of no dimension and CPU indices are allowed, as in torch),
* ``.numpy()`` and ``np.asarray`` of a GPU tensor, pinning one, a generator of another device than the tensor it fills,
* convolutions, matrix products, pooling and interpolation of integers, which CUDA has no kernels for,
* while a graph is being captured, whatever waits for the GPU or copies from ordinary memory.

What it cannot show: numbers that differ on a GPU (TF32, the order of sums), kernels that are missing for other reasons, memory, races
between streams, NCCL, pinned memory, the casts of CUDA's autocast, and threads or processes other than the one that entered it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["FREE_BYTES", "Gpu", "device_of", "plain_cpu", "pretended_gpus"]

CPU = torch.device("cpu")
FREE_BYTES = 8 * 2**30
ANY_DEVICES = {"copy_", "_to_copy", "set_data", "is_same_size"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
WAITING = {"_local_scalar_dense", "nonzero", "mrequested_select", "unique_consecutive", "_unique2", "unique_dim", "equal", "is_nonzero"}
FLOATS_ONLY = ("convolution", "mm", "addmm", "bmm", "baddbmm", "max_pool2d", "avg_pool2d", "adaptive_", "upsample_bi", "_upsample_bi")

GETTERS = {name: getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu")}
READS_DEVICE = {*GETTERS.values(), Tensor.get_device, Tensor.numpy, Tensor.__array__, Tensor.pin_memory, Tensor.to, Tensor.cpu, Tensor.cuda}
READS_DEVICE.add(Tensor.__deepcopy__)

_labels: dict[int, tuple[StorageWeakRef, torch.device]] = {}  # the weak reference keeps an address from being used again


def _label(tensor: Tensor, device: torch.device) -> None:
    with torch._C.DisableTorchFunction():
        if not tensor.is_cpu:
            return
        reference = StorageWeakRef(tensor.untyped_storage())
    if device.type == "cuda":
        _labels[reference.cdata] = reference, torch.device("cuda", device.index or 0)
    else:
        _labels.pop(reference.cdata, None)


def device_of(tensor: Tensor) -> torch.device:
    """The device that a tensor says it is on."""
    with torch._C.DisableTorchFunction():
        return _found(tensor)


def _found(tensor: Tensor) -> torch.device:
    if not tensor.is_cpu:
        return tensor.device
    found = _labels.get(tensor.untyped_storage()._cdata)
    return CPU if found is None else found[1]


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Tensors among the arguments of an operation and in their lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _device(given: Any) -> torch.device:
    return torch.device("cuda", given) if isinstance(given, int) else torch.device(given)


class Gpu:
    """What happened on the pretended GPUs.

    Attributes:
        waits: how often the CPU waited for a value of a GPU tensor.
        capturing: a graph is being captured.
        graphs: (options of the capture, devices that were current) of each graph.
        current: number of the current device.
    """

    def __init__(self) -> None:
        self.waits, self.capturing, self.current = 0, False, 0
        self.graphs: list[dict[str, Any]] = []
        self.events: list[int] = []

    def wait(self, what: str) -> None:
        if self.capturing:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")
        self.waits += 1


class _Kernels(TorchDispatchMode):
    """Below autograd: checks the devices of an operation's tensors and labels its results."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").partition(".")[0]
        given = _tensors(args) + _tensors(kwargs.values()) if kwargs else _tensors(args)
        device = self._checked(name, args, given)
        if device.type == "cuda":
            self._check_call(name, args, kwargs, given, device)
        result = func(*args, **kwargs)
        if device.type == "cuda":
            held = {tensor.untyped_storage()._cdata for tensor in given if tensor.is_cpu}
            for leaf in _tensors((result,)):
                if leaf.is_cpu and leaf.untyped_storage()._cdata not in held:
                    _label(leaf, device)
        return result

    def _checked(self, name: str, args: Any, given: list[Tensor]) -> torch.device:
        devices = [_found(tensor) for tensor in given]
        if name == "copy_":
            if devices[0] == CPU != devices[1]:
                self.gpu.wait(name)
            elif devices[0] != CPU == devices[1] and given[1].dim():
                self._upload()
            return devices[0]
        if name in ANY_DEVICES:
            return devices[0] if devices else CPU
        if name in INDEXING:
            own = devices[0]
            for index in _tensors((args[1],)):
                if device_of(index) not in (CPU, own):
                    raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor ({own})")
            values = args[2] if len(args) > 2 else None
            if isinstance(values, Tensor) and device_of(values) != own and (values.dim() or own == CPU):
                raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {own} with {device_of(values)}")
            if own != CPU and any(i.dtype in (torch.bool, torch.uint8) for i in _tensors((args[1],))):
                self.gpu.wait(name)
            return own
        counted = [device for tensor, device in zip(given, devices, strict=True) if tensor.dim() or device != CPU]
        if len(set(counted)) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {sorted(map(str, set(counted)))}")
        return counted[0] if counted else CPU

    def _check_call(self, name: str, args: Any, kwargs: Any, given: list[Tensor], device: torch.device) -> None:
        if name in WAITING:
            self.gpu.wait(name)
        if name.startswith(FLOATS_ONLY) and not given[0].dtype.is_floating_point:
            raise RuntimeError(f'"{name}_cuda" not implemented for {given[0].dtype}')
        for leaf in (*args, *kwargs.values()):
            if isinstance(leaf, torch.Generator) and leaf.device.type != device.type:
                raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{leaf.device.type}'")

    def _upload(self) -> None:
        if self.gpu.capturing:
            self.gpu.wait("copy from ordinary memory")


class _Interface(TorchFunctionMode):
    """What Python sees: ``device``, ``to``, ``cpu``, ``numpy``, and factories that are given a device."""

    def __init__(self, kernels: _Kernels) -> None:
        super().__init__()
        self.kernels = kernels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS_DEVICE and args and isinstance(args[0], Tensor):
            own = args[0]
            here = device_of(own)
            if func in (GETTERS["device"], GETTERS["is_cuda"], GETTERS["is_cpu"]):
                return here if func == GETTERS["device"] else here.type == ("cuda" if func == GETTERS["is_cuda"] else "cpu")
            if func is Tensor.get_device:
                return here.index if here.type == "cuda" else -1
            if func in (Tensor.numpy, Tensor.__array__) and here.type == "cuda":
                raise TypeError(f"can't convert {here} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory")
            if func is Tensor.pin_memory:
                if here.type == "cuda":
                    raise RuntimeError("cannot pin a CUDA tensor, only dense CPU tensors can be pinned")
                return own.clone()
            if func is Tensor.to:
                return self._to(func, own, args[1:], dict(kwargs))
            if func in (Tensor.cpu, Tensor.cuda):
                return self._moved(own, CPU if func is Tensor.cpu else torch.device("cuda", *args[1:2]))
            if func is Tensor.__deepcopy__:
                copied = func(*args, **kwargs)
                _label(copied, here)
                return copied
        return self._made(func, args, kwargs) if "device" in kwargs else func(*args, **kwargs)

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Anything that is given ``device=``: done on the CPU and labelled."""
        requested = kwargs["device"]
        if requested is None or isinstance(requested, bool):
            return func(*args, **kwargs)
        device = _device(requested)
        if device.type == "meta":
            return func(*args, **kwargs)
        if func in (torch.as_tensor, torch.asarray) and isinstance(args[0], Tensor):
            return self._moved(func(args[0], **{k: v for k, v in kwargs.items() if k != "device"}), device)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != device.type:
            raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{generator.device.type}'")
        if device.type == "cuda" and func is torch.tensor and self.kernels.gpu.capturing:
            self.kernels.gpu.wait("torch.tensor")
        made = func(*args, **{**kwargs, "device": CPU})
        for tensor in _tensors((made,)):
            _label(tensor, device)
        return made

    def _to(self, func: Any, own: Tensor, rest: Any, kwargs: dict[str, Any]) -> Tensor:
        requested = kwargs.pop("device", None)
        kept = {name: value for name, value in kwargs.items() if name in ("dtype", "memory_format", "copy") and value is not None}
        for value in rest:
            if isinstance(value, Tensor):
                requested, kept["dtype"] = device_of(value), value.dtype
            elif isinstance(value, torch.dtype):
                kept["dtype"] = value
            elif isinstance(value, (str, torch.device)) or (isinstance(value, int) and not isinstance(value, bool)):
                requested = value
        cast = func(own, **{"dtype": own.dtype, **kept})
        return cast if requested is None else self._moved(cast, _device(requested))

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        if device.type == "meta":
            return torch.empty_like(tensor, device="meta")
        device = torch.device("cuda", device.index or 0) if device.type == "cuda" else CPU
        here = device_of(tensor)
        if here == device:
            return tensor
        if device == CPU:
            self.kernels.gpu.wait("copy to the CPU")
        elif here == CPU and tensor.dim():
            self.kernels._upload()
        moved = tensor.clone()
        _label(moved, device)
        return moved


@contextmanager
def pretended_gpus(count: int = 1) -> Iterator[Gpu]:
    """Within the block there are ``count`` GPUs."""
    gpu = Gpu()
    kernels = _Kernels(gpu)
    # the health check calls the driver
    no_health_check = mock.patch.object(
        torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda optimizer: None
    )  # asks the driver
    with mock.patch.multiple(torch.cuda, **_module_of(gpu, count)), no_health_check, kernels, _Interface(kernels):
        yield gpu
    for address in [address for address, (reference, _) in _labels.items() if reference.expired()]:
        del _labels[address]


@contextmanager
def plain_cpu() -> Iterator[None]:
    """Within the block, inside the other one, operations are not looked at: for what is done on the CPU alone."""
    with _disable_current_modes():
        yield


def _module_of(gpu: Gpu, count: int) -> dict[str, Any]:
    """The functions of ``torch.cuda`` that the package and its libraries call."""

    class device:  # noqa: N801 - as torch names it
        def __init__(self, which: Any) -> None:
            self.index = which if isinstance(which, int) else torch.device(which).index or 0

        def __enter__(self) -> None:
            self.before, gpu.current = gpu.current, self.index

        def __exit__(self, *error: Any) -> None:
            gpu.current = self.before

    class Stream:
        def __init__(self, where: Any = None) -> None:
            self.device = torch.device("cuda", gpu.current) if where is None else torch.device(where)

        def wait_stream(self, other: Any) -> None: ...

        def wait_event(self, event: Any) -> None: ...

        def record_event(self, event: Any = None) -> Any:
            return Event() if event is None else event

    class Event:
        def __init__(self, enable_timing: bool = False) -> None: ...

        def record(self, stream: Any = None) -> None:
            gpu.events.append(gpu.current)

        def elapsed_time(self, other: Any) -> float:
            return 1.0

        def wait(self, stream: Any = None) -> None: ...

    class CUDAGraph:
        def replay(self) -> None:
            gpu.graphs[-1].setdefault("replays", 0)
            gpu.graphs[-1]["replays"] += 1

    class graph:  # noqa: N801
        default = None

        def __init__(self, made: Any, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> None:
            type(self).default = type(self).default or Stream()  # one for the process, on the device that was current first
            self.stream = stream or type(self).default
            mode = {"mode": capture_error_mode, "stream": self.stream, "pool": pool, "autocast": torch.is_autocast_enabled("cuda")}
            gpu.graphs.append(mode)

        def __enter__(self) -> None:
            if gpu.capturing:
                raise RuntimeError("another capture is under way")
            self.before, gpu.current = gpu.current, self.stream.device.index or 0
            gpu.graphs[-1]["device"] = gpu.current
            gpu.capturing = True

        def __exit__(self, *error: Any) -> None:
            gpu.capturing, gpu.current = False, self.before

    def stream(which: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def nothing(*args: Any, **options: Any) -> None: ...

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": nothing,
        "current_device": lambda: gpu.current,
        "device_count": lambda: count,
        "get_device_name": lambda which=None: "pretended GPU",
        "is_bf16_supported": lambda *args, **options: True,
        "get_device_capability": lambda which=None: (9, 0),
        "get_device_properties": lambda which=None: SimpleNamespace(name="pretended GPU", total_memory=FREE_BYTES),
        "mem_get_info": lambda which=None: (FREE_BYTES, FREE_BYTES),
        "memory_reserved": lambda which=None: 0,
        "memory_allocated": lambda which=None: 0,
        "max_memory_allocated": lambda which=None: 0,
        "reset_peak_memory_stats": nothing,
        "empty_cache": nothing,
        "synchronize": nothing,
        "set_device": nothing,
        "graph_pool_handle": lambda: (0, len(gpu.graphs)),
        "current_stream": lambda which=None: Stream(which),
        "stream": stream,
        "device": device,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
    }
