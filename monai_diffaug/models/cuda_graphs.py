"""Replay a denoiser as a CUDA graph, one graph per input shape: a UNet call takes one launch instead of thousands."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_diffaug.sampling.inpaint_latents import Denoiser

__all__ = ["Capture", "Captured", "GraphedDenoiser", "bucket_of", "capture_cuda"]

logger = logging.getLogger(__name__)

WARM_UP_CALLS = 3  # as in torch.cuda.make_graphed_callables: create cuDNN plans, workspaces and compilations before the capture
KEPT_GRAPHS = 4  # each occupies the memory of its activations
LARGEST_PADDING = 0.25  # of the rows of a call; a call that needs more padding gets a graph of its exact size
_capturing = threading.Lock()  # torch allows one capture per process at a time


class Captured(NamedTuple):
    """A graph: inputs of a call are copied into ``inputs`` (latents, timestep, text states); ``replay`` writes into ``output``."""

    inputs: tuple[Tensor, Tensor, Tensor]
    output: Tensor
    replay: Callable[[], None]


Capture = Callable[[Denoiser, tuple[Tensor, Tensor, Tensor]], Captured]
"""(denoiser, example inputs on the device) -> graph."""


def capture_cuda(denoise: Denoiser, examples: tuple[Tensor, Tensor, Tensor]) -> Captured:
    """Record one call of a denoiser on a CUDA device (the procedure of torch's documentation on ``torch.cuda.CUDAGraph``).

    It uses a new stream: torch's default capture stream stays on the GPU of the first capture in the process. Autocast is off, because
    the graph is used after the caller's ``torch.autocast`` has ended.

    Args:
        denoise: must not read values of GPU tensors in Python, nor branch on them.
        examples: latents, timestep (0-d) and text states.

    Raises:
        RuntimeError: an operation of the call cannot be captured.
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
    """A ``Denoiser`` that is recorded once per input shape and then replayed; the results equal those of the denoiser.

    A call is padded with copies of its last row to a power of two if that adds at most 25 % of its rows; rows are independent, so
    padding does not change the other predictions. If the recording fails, the denoiser is called directly and the reason is logged.

    Args:
        denoise: the UNet's call; its weights must not move in memory.
        keep: number of graphs that are kept, the most recently used.
        capture: records a call.
    """

    def __init__(self, denoise: Denoiser, keep: int = KEPT_GRAPHS, capture: Capture = capture_cuda) -> None:
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self.denoise = denoise
        self.keep = keep
        self.capture = capture
        self._graphs: OrderedDict[tuple[Any, ...], Captured | None] = OrderedDict()
        self._lock = threading.Lock()
        self._done: Any = None  # CUDA event at the end of the last call

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Latents (B, C, h, w), a 0-d timestep and text states (B, L, D) -> (B, 4, h, w)."""
        count = len(latents)
        rows = bucket_of(count)
        inputs = _padded(latents, rows), timestep.to(latents.device), _padded(context, rows)
        key = tuple((tuple(tensor.shape), tensor.dtype, str(tensor.device)) for tensor in inputs)
        with self._lock:  # one call at a time uses the tensors of a graph
            captured = self._recorded(key, inputs)
            if captured is None:
                return self.denoise(latents, timestep, context)
            stream = torch.cuda.current_stream(latents.device) if latents.is_cuda else None
            if stream is not None and self._done is not None:
                stream.wait_event(self._done)  # the last call may have used another stream
            for target, tensor in zip(captured.inputs, inputs, strict=True):
                target.copy_(tensor)
            captured.replay()
            prediction = captured.output[:count].clone()
            self._done = None if stream is None else stream.record_event()
            return prediction

    def _recorded(self, key: tuple[Any, ...], inputs: tuple[Tensor, Tensor, Tensor]) -> Captured | None:
        """The graph of a key; None if it cannot be recorded."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        while len(self._graphs) >= self.keep:
            self._graphs.popitem(last=False)
        try:
            with torch.inference_mode(False), torch.no_grad():  # later calls, also of a training step, write into its inputs
                self._graphs[key] = self.capture(self.denoise, inputs)
        except RuntimeError as error:
            shortage = _shortage(error)
            if shortage is not None:
                self._graphs.clear()  # releases memory for the caller, who halves the batch
                raise shortage from None
            logger.warning("no CUDA graph for latents %s, the UNet is called as it is: %s", tuple(inputs[0].shape), error)
            self._graphs[key] = None
        return self._graphs[key]


def _shortage(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """The out-of-memory error in an error's chain: a capture that it interrupts raises a second error when it ends."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return error
        error = error.__cause__ or error.__context__
    return None


def bucket_of(count: int) -> int:
    """Rows of the graph for a call of ``count`` rows: the next power of two, or ``count`` if that needs more than 25 % padding.

    >>> [bucket_of(count) for count in (5, 7, 8)]
    [5, 8, 8]
    """
    power = 1 << (count - 1).bit_length()
    return power if power - count <= LARGEST_PADDING * count else count


def _padded(tensor: Tensor, rows: int) -> Tensor:
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor
