"""Several processes that train one model, as ``torchrun`` starts them: gradients are averaged, one process writes.

Each function does nothing where there is no process group, so the training loop reads the same for one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_diffaug.training.run_settings import TrainingInputError

__all__ = [
    "alike",
    "average_gradients",
    "averaged",
    "failing_together",
    "first_process_value",
    "is_writer",
    "joined",
    "own_device",
    "process_rank",
    "same_weights",
]


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_rank() -> int:
    """Number of this process, 0 where there is only one."""
    return dist.get_rank() if _together() else 0


def is_writer() -> bool:
    """Whether this process logs, draws and saves."""
    return process_rank() == 0


def own_device(device: str) -> str:
    """The device of this process: "cuda" becomes the GPU whose number is the process's on its machine."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within the block this process belongs to the group that ``torchrun`` has started; nothing when it has started none.

    Args:
        device: of this process; NCCL connects GPUs, Gloo the rest.
    """
    if not dist.is_available() or dist.is_initialized() or not dist.is_torchelastic_launched():
        yield
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def failing_together(device: torch.device) -> Iterator[None]:
    """The block fails in every process when it fails in one: none goes on and waits for one that is gone.

    All processes come to the block, go on when all are through it, and within it wait for no other.

    Args:
        device: where this process trains.

    Raises:
        TrainingInputError: the block failed in another process.
    """
    if not _together():
        yield
        return
    failed = torch.zeros(1, device=device)  # now: the block may use up the memory
    try:
        yield
    except Exception:
        with suppress(RuntimeError):  # the device or the group itself may be what failed
            failed += 1
            dist.all_reduce(failed)
        raise
    dist.all_reduce(failed)
    if float(failed):
        raise TrainingInputError("another process of this run failed; its own message says why")


def alike(value: float, device: torch.device) -> bool:
    """Whether all processes gave the same value."""
    if not _together():
        return True
    extremes = torch.tensor([value, -value], dtype=torch.float64, device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return float(extremes[0]) == -float(extremes[1])


def first_process_value(value: float, device: torch.device) -> float:
    """The value that the first process gave."""
    if not _together():
        return value
    held = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(held, 0)
    return float(held)


def averaged(value: Tensor) -> float:
    """Mean over the processes of a scalar; not finite when one is not."""
    mean = value.detach().float().clone()
    if _together():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return float(mean)


def same_weights(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the first one's weights."""
    if _together():
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; a process in which a parameter took no part counts as zero there."""
    if not _together():
        return
    taking_part = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(taking_part, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, takes_part in zip(parameters, taking_part.tolist(), strict=True):
        if takes_part:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    pending = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for work, gradient in zip(pending, gradients, strict=True):
        work.wait()
        gradient /= dist.get_world_size()
