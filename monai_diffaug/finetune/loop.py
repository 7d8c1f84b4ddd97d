"""The one training loop of all recipes: rate, average, resume, sample pictures, export."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from monai_diffaug.finetune.log import TrainingLog
from monai_diffaug.finetune.settings import FineTuneSettings, TrainingInputError, remember_settings
from monai_diffaug.training.checkpoint import Clock, Ema, cosine_rate, load_state, save_state

__all__ = ["TRAINING_FOLDER", "Trainee", "fine_tune"]

logger = logging.getLogger(__name__)

TRAINING_FOLDER = "training"
LOG_EVERY = 25
CHECKPOINTS = 10  # over the run
FLOOR = 0.02  # the learning rate falls to this share of its peak


class Trainee(Protocol):
    """What a recipe gives to the loop; it is built as ``Recipe(settings, slices, held_out)``.

    Attributes:
        name: of the recipe.
        modules: what is trained: the parameters in it that require a gradient.
        rate: peak learning rate when the settings name none.
    """

    name: str
    modules: Mapping[str, nn.Module]
    rate: float

    def reseed(self, seed: int) -> None:
        """Begin new streams of random numbers: a run that goes on does not see the same crops again."""
        ...

    def loss(self) -> Tensor:
        """The scalar loss of one new batch."""
        ...

    def draw(self, file: Path) -> None:
        """Write one PNG that shows what the modules do now."""
        ...

    def write(self, folder: Path) -> None:
        """Write the model as a folder that ``model=`` takes."""
        ...


class _Spent:
    """Optimiser steps and running seconds so far, as a part of the saved state."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0

    def state_dict(self) -> dict[str, float]:
        return {"steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.steps, self.seconds = int(state["steps"]), float(state["seconds"])


class _Budget:
    """Progress of a run that is measured in minutes or in steps; a finished run goes on when it is given more of them."""

    def __init__(self, settings: FineTuneSettings, spent: _Spent) -> None:
        self.spent, self.wanted = spent, settings.steps
        self.clock = None if settings.minutes is None else Clock(settings.minutes, spent.seconds / (60 * settings.minutes))

    def progress(self) -> float:
        if self.clock is None:
            return self.spent.steps / self.wanted if self.wanted else 1.0
        progress = self.clock.progress()
        self.spent.seconds = self.clock.spent_s
        return progress


def fine_tune(trainee: Trainee, settings: FineTuneSettings, out: Path) -> int:
    """Train until the budget is spent, going on where ``out`` left off, and write the averaged model to ``out``.

    ``out/training`` holds the state, the settings, ``log.jsonl`` and ``samples/``.

    Returns:
        Optimiser steps done since the run began.

    Raises:
        TrainingInputError: ``out`` holds another run, or the loss is not finite.
    """
    folder = out / TRAINING_FOLDER
    remember_settings(folder, trainee.name, settings)
    log = TrainingLog(folder, tensorboard=settings.tensorboard)
    trained = nn.ParameterList([p for module in trainee.modules.values() for p in module.parameters() if p.requires_grad])
    logger.info("%s: %.2f M trained weights", trainee.name, sum(p.numel() for p in trained) / 1e6)
    ema, spent = Ema(trained), _Spent()
    peak = settings.rate or trainee.rate
    optimizer = torch.optim.AdamW(trained.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    parts: dict[str, Any] = {"trained": trained, "ema": ema, "optimizer": optimizer, "spent": spent}
    state = folder / "state.ckpt"
    load_state(state, parts)
    budget = _Budget(settings, spent)
    trainee.reseed(settings.seed + spent.steps)
    rate = cosine_rate(peak, FLOOR * peak)
    progress = budget.progress()
    shown, saved = _passed(progress, settings.pictures), _passed(progress, CHECKPOINTS)
    if spent.steps == 0:
        _draw(trainee, trained, ema, log, folder, 0)
    try:
        recent = 0.0
        while (progress := budget.progress()) < 1:
            for group in optimizer.param_groups:
                group["lr"] = rate(progress)
            loss = _step(trainee, trained, optimizer, settings)
            ema.update(trained)
            spent.steps += 1
            recent = loss if recent == 0 else 0.95 * recent + 0.05 * loss
            if spent.steps % LOG_EVERY == 0:
                log.figures(spent.steps, progress, loss=recent, rate=rate(progress))
            if _passed(progress, CHECKPOINTS) > saved:
                saved = _passed(progress, CHECKPOINTS)
                save_state(state, parts, progress)
            if _passed(progress, settings.pictures) > shown:
                shown = _passed(progress, settings.pictures)
                _draw(trainee, trained, ema, log, folder, spent.steps)
    except KeyboardInterrupt:
        save_state(state, parts, min(progress, 1.0))
        logger.warning("stopped at step %d; the same command goes on from there", spent.steps)
        raise
    else:
        save_state(state, parts, 1.0)
        _draw(trainee, trained, ema, log, folder, spent.steps)
        with _averaged(trained, ema):
            trainee.write(out)
    finally:
        log.close()
    return spent.steps


def _passed(progress: float, parts: int) -> int:
    return int(min(progress, 1.0) * parts) if parts else 0


def _step(trainee: Trainee, trained: nn.ParameterList, optimizer: torch.optim.Optimizer, settings: FineTuneSettings) -> float:
    kind = torch.device(settings.device).type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16"):
        loss = trainee.loss()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingInputError(f"the loss is {value}: training diverged; use a lower --rate than {optimizer.param_groups[0]['lr']:g}")
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
    optimizer.step()
    return value


@contextmanager
def _averaged(trained: nn.ParameterList, ema: Ema) -> Iterator[None]:
    """Within the block the modules hold the averaged weights."""
    kept = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for parameter, mean in zip(trained, ema.module.parameters(), strict=True):
            parameter.copy_(mean)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)


def _draw(trainee: Trainee, trained: nn.ParameterList, ema: Ema, log: TrainingLog, folder: Path, step: int) -> None:
    file = folder / "samples" / f"step_{step:06d}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _averaged(trained, ema):
        trainee.draw(file)
    log.picture(step, file)
