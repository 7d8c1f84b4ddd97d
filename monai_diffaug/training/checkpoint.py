"""Resumable state of a training run: one file, written to a part file and renamed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffaug.files.whole_file import whole_file

__all__ = ["Budget", "Ema", "cosine_rate", "load_state", "save_state"]

logger = logging.getLogger(__name__)

LONGEST_STEP_S = 10.0


class Budget:
    """Steps and running time spent so far, and the progress of a run whose length is a number of minutes or of steps.

    A finished run can be resumed with a greater length. The time in which the machine was suspended counts as 10 s at most.
    """

    def __init__(self, minutes: float | None = None, steps: int | None = None) -> None:
        self.minutes, self.step_limit = minutes, steps
        self.steps, self.seconds = 0, 0.0
        self._last = time.monotonic()

    def progress(self) -> float:
        """Share of the budget that is spent, 1 or more when it is over; to be called at each step."""
        now = time.monotonic()
        self.seconds += min(now - self._last, LONGEST_STEP_S)
        self._last = now
        spent, limit = (self.steps, self.step_limit) if self.minutes is None else (self.seconds, 60 * self.minutes)
        return spent / limit if limit else 1.0

    def state_dict(self) -> dict[str, float]:
        return {"steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.steps, self.seconds = int(state["steps"]), float(state["seconds"])


class Ema:
    """Exponential moving average of a module's parameters and buffers."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.module = deepcopy(module).eval().requires_grad_(False)
        self.steps = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards ``module``; the first steps move further, so that the initial weights are forgotten."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, now in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self.module.load_state_dict(state["module"])


def save_state(path: Path, parts: dict[str, Any], progress: float) -> None:
    """Write ``{name: part.state_dict()}`` and the progress in [0, 1]; never leaves a half-written file.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        try:
            torch.save({"progress": progress, **{name: value.state_dict() for name, value in parts.items()}}, part)
        except RuntimeError as error:  # torch's error when the disk is full
            raise OSError(f"{path} cannot be written, is the disk full? ({str(error).splitlines()[0]})") from error


def load_state(path: Path, parts: dict[str, Any]) -> float:
    """Load a file of ``save_state`` into the parts; returns the progress, 0 when there is no file yet."""
    if not path.is_file():
        return 0.0
    state: dict[str, Tensor | Any] = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in parts.items():
        value.load_state_dict(state[name])
    logger.info("resumed %s at %.0f %%", path, 100 * float(state["progress"]))
    return float(state["progress"])


def cosine_rate(peak: float, floor: float, warmup: float = 0.02) -> Callable[[float], float]:
    """Learning rate as a function of the progress in [0, 1]: linear warm-up, then a cosine from peak to floor."""

    def rate(progress: float) -> float:
        if progress < warmup:
            return peak * (progress + 1e-4) / (warmup + 1e-4)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return rate
