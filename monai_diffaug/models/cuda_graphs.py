"""A denoiser replayed as a CUDA graph, one for each shape that it is called with: a UNet call costs one launch instead of thousands."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Capture", "Captured", "GraphedDenoiser", "bucket_of", "capture_cuda"]

logger = logging.getLogger(__name__)

WARM_UP_CALLS = 3  # as torch.cuda.make_graphed_callables: cuDNN plans, workspaces and compilations are made before the capture
KEPT_GRAPHS = 4  # each holds the memory of its activations
_capturing = threading.Lock()  # torch allows one capture at a time in a process

LARGEST_PADDING = 0.25  # of a call's rows: a bucket that would pad more is captured at its own size


class _Denoise(Protocol):
    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor: ...


class Captured(NamedTuple):
    """A graph with the tensors that it reads and writes.

    Attributes:
        inputs: latents, timestep and text states; a call is copied into them.
        output: the prediction after ``replay``.
        replay: run the graph.
    """

    inputs: tuple[Tensor, Tensor, Tensor]
    output: Tensor
    replay: Callable[[], None]


Capture = Callable[[_Denoise, tuple[Tensor, Tensor, Tensor]], Captured]
"""(denoiser, example inputs on the device) -> its graph."""


def capture_cuda(denoise: _Denoise, examples: tuple[Tensor, Tensor, Tensor]) -> Captured:
    """Record one call of a denoiser on a CUDA device (the procedure of torch's documentation on ``torch.cuda.CUDAGraph``).

    The stream is given: torch's own one stays on the GPU that was the first to record. What is recorded is the denoiser in the type of
    its weights, as a graph outlives the caller's ``torch.autocast``.

    Args:
        denoise: reads no value of a GPU tensor in Python and has no control flow that depends on one.
        examples: latents, timestep (0-d) and text states.

    Raises:
        RuntimeError: something in the call cannot be captured.
    """
    inputs = examples[0].clone(), examples[1].clone(), examples[2].clone()
    device = inputs[0].device
    with _capturing, torch.cuda.device(device), torch.no_grad(), torch.autocast("cuda", enabled=False):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                denoise(*inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):  # other threads may allocate meanwhile
            output = denoise(*inputs)
    return Captured(inputs, output, graph.replay)


class GraphedDenoiser:
    """A ``Denoiser`` that is recorded once for each shape and then replayed; the results are those of the denoiser.

    A call with fewer rows than a power of two is padded to it with its last row when that adds at most a quarter: rows do not see each
    other, so the prediction of the others does not change. Where recording fails the denoiser is called as it is, and the log says why.

    Args:
        denoise: the UNet's call; its weights must stay where they are.
        keep: graphs kept at once, the last used.
        capture: how a call is recorded.
    """

    def __init__(self, denoise: _Denoise, keep: int = KEPT_GRAPHS, capture: Capture = capture_cuda) -> None:
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self.denoise = denoise
        self.keep = keep
        self.capture = capture
        self._graphs: OrderedDict[tuple[Any, ...], Captured | None] = OrderedDict()
        self._lock = threading.Lock()
        self._done: Any = None  # the event at the end of the last call

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """As the denoiser: (B, C, h, w), a 0-d timestep and (B, L, D) -> (B, 4, h, w)."""
        count = len(latents)
        rows = bucket_of(count)
        given = _padded(latents, rows), timestep.to(latents.device), _padded(context, rows)
        key = tuple((tuple(tensor.shape), tensor.dtype, str(tensor.device)) for tensor in given)
        with self._lock:  # a graph's tensors serve one call at a time
            captured = self._recorded(key, given)
            if captured is None:
                return self.denoise(latents, timestep, context)
            stream = torch.cuda.current_stream(latents.device) if latents.is_cuda else None
            if stream is not None and self._done is not None:
                stream.wait_event(self._done)  # the last call may have been made on another stream
            for own, tensor in zip(captured.inputs, given, strict=True):
                own.copy_(tensor)
            captured.replay()
            prediction = captured.output[:count].clone()
            self._done = None if stream is None else stream.record_event()
            return prediction

    def _recorded(self, key: tuple[Any, ...], given: tuple[Tensor, Tensor, Tensor]) -> Captured | None:
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        while len(self._graphs) >= self.keep:
            self._graphs.popitem(last=False)
        try:
            with torch.inference_mode(False), torch.no_grad():  # later calls write into its inputs, in a training step too
                self._graphs[key] = self.capture(self.denoise, given)
        except RuntimeError as error:
            shortage = _shortage(error)
            if shortage is not None:
                self._graphs.clear()  # their memory serves the caller, who halves the batch
                raise shortage from None
            logger.warning("no CUDA graph for latents %s, the UNet is called as it is: %s", tuple(given[0].shape), error)
            self._graphs[key] = None
        return self._graphs[key]


def _shortage(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """The lack of memory behind an error: ending a capture that it broke raises another one on top."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return error
        error = error.__cause__ or error.__context__
    return None


def bucket_of(count: int) -> int:
    """Rows of the graph that serves a call of ``count`` rows: the next power of two, or ``count`` where that pads too much."""
    power = 1 << (count - 1).bit_length()
    return power if power - count <= LARGEST_PADDING * count else count


def _padded(tensor: Tensor, rows: int) -> Tensor:
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor
