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
    "is_alone",
    "is_writer",
    "joined",
    "largest",
    "local_device",
    "process_rank",
    "same_weights",
]


def is_alone() -> bool:
    """No other process trains the same model."""
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def process_rank() -> int:
    """Number of this process, 0 where there is only one."""
    return 0 if is_alone() else dist.get_rank()


def is_writer() -> bool:
    """This process logs, draws and saves."""
    return process_rank() == 0


def local_device(device: str) -> str:
    """The device of this process: "cuda" becomes the GPU whose number is the process's on its machine."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within the block this process belongs to the group that ``torchrun`` has started; without ``torchrun`` nothing happens.

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
    """The block fails in every process when it fails in one, so that none waits for a process that is gone.

    All processes must enter the block, and must not wait for each other within it; they leave it together.

    Args:
        device: where this process trains.

    Raises:
        TrainingInputError: the block failed in another process.
    """
    if is_alone():
        yield
        return
    failed = torch.zeros(1, device=device)  # before the block, which may use up the memory
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


def largest(value: float, device: torch.device) -> float:
    """The largest of the values of all processes."""
    if is_alone():
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return float(shared)


def alike(value: float, device: torch.device) -> bool:
    """True if all processes have the same value."""
    return largest(value, device) == -largest(-value, device)


def first_process_value(value: float, device: torch.device) -> float:
    """The value of the first process."""
    if is_alone():
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def averaged(value: Tensor) -> float:
    """Mean of a scalar over the processes; not finite if one of them is not."""
    mean = value.detach().float().clone()
    if not is_alone():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return float(mean)


def same_weights(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the first one's weights."""
    if not is_alone():
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; where a parameter was not used its gradient counts as zero."""
    if is_alone():
        return
    is_used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(is_used, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, used in zip(parameters, is_used.tolist(), strict=True):
        if used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    pending = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for work, gradient in zip(pending, gradients, strict=True):
        work.wait()
        gradient /= dist.get_world_size()
