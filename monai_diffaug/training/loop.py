"""The one training loop of all recipes: rate, average, resume, sample pictures, export; on one process or several."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from monai_diffaug.training.checkpoint import Clock, Ema, cosine_rate, load_state, save_state
from monai_diffaug.training.processes import (
    alike,
    average_gradients,
    averaged,
    failing_together,
    first_process_value,
    is_writer,
    process_rank,
    same_weights,
)
from monai_diffaug.training.run_settings import STATE_FILE, FineTuneSettings, TrainingInputError, remember_settings
from monai_diffaug.training.trained_on import trained_on
from monai_diffaug.training.training_log import TrainingLog

__all__ = ["TRAINING_FOLDER", "Trainee", "fine_tune"]

logger = logging.getLogger(__name__)

TRAINING_FOLDER = "training"
LOG_EVERY = 25
CHECKPOINTS = 10  # over the run
SEEDS_APART = 1_000_003  # of the processes' random numbers; more than a run has steps
FLOOR = 0.02  # the learning rate falls to this share of its peak


class Trainee(Protocol):
    """What a recipe gives to the loop; it is built as ``Recipe(settings, slices, held_out)``.

    Attributes:
        name: of the recipe.
        modules: what is trained: the parameters in it that require a gradient.
        rate: peak learning rate when the settings name none.
        slices: what it draws from, where it draws from ``LabelledSlice``s; not needed. A run goes on with the same ones alone.
    """

    name: str
    modules: Mapping[str, nn.Module]
    rate: float

    def reseed(self, seed: int) -> None:
        """Begin new streams of random numbers: a run that goes on does not see the same crops again."""
        ...

    def loss(self, progress: float) -> Tensor:
        """The scalar loss of one new batch; ``progress`` is the share of the run that is over, for recipes with phases."""
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


class _Record:
    """What a run leaves in its folder as it goes; in a process that does not write, nothing."""

    def __init__(
        self, trainee: Trainee, trained: nn.ParameterList, parts: Mapping[str, Any], settings: FineTuneSettings, folder: Path
    ) -> None:
        self.trainee, self.trained, self.parts, self.folder = trainee, trained, dict(parts), folder
        self.pictures = settings.pictures
        self.log = TrainingLog(folder, tensorboard=settings.tensorboard) if is_writer() else None
        self.shown = self.saved = 0

    @property
    def state(self) -> Path:
        return self.folder / STATE_FILE

    def starts(self, progress: float) -> None:
        """Count from here on; a run that has done nothing yet is shown as it is."""
        self.shown, self.saved = _passed(progress, self.pictures), _passed(progress, CHECKPOINTS)
        if self.parts["spent"].steps == 0:
            self.draw()

    def step(self, progress: float, **figures: float) -> None:
        """After a step: figures, state and pictures when it is time for them."""
        if self.log is None:
            return
        if self.parts["spent"].steps == 1 or self.parts["spent"].steps % LOG_EVERY == 0:
            self.log.figures(self.parts["spent"].steps, progress, **figures)
        if _passed(progress, CHECKPOINTS) > self.saved:
            self.saved = _passed(progress, CHECKPOINTS)
            self.save(progress)
        if _passed(progress, self.pictures) > self.shown:
            self.shown = _passed(progress, self.pictures)
            self.draw()

    def save(self, progress: float) -> None:
        if self.log is not None:
            save_state(self.state, self.parts, progress)

    def draw(self) -> None:
        """What the averaged weights do now."""
        if self.log is None:
            return
        step = self.parts["spent"].steps
        file = self.folder / "samples" / f"step_{step:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad(), _averaged(self.trained, self.parts["ema"]):
            self.trainee.draw(file)
        self.log.picture(step, file)

    def write(self, out: Path) -> None:
        """The averaged model."""
        if self.log is not None:
            with _averaged(self.trained, self.parts["ema"]):
                self.trainee.write(out)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def _take_up(record: _Record) -> None:
    """Load the state of an earlier run, if there is one.

    Raises:
        TrainingInputError: it is cut, or of another shape.
    """
    try:
        load_state(record.state, record.parts)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingInputError(
            f"{record.state} does not fit this run ({reason}); use --restart to begin anew, or another --out"
        ) from error


def fine_tune(trainee: Trainee, settings: FineTuneSettings, out: Path | str) -> int:
    """Train until the budget is spent, going on where ``out`` left off, and write the averaged model to ``out``.

    ``out/training`` holds the state, the settings, ``log.jsonl`` and ``samples/``. In a process group of ``torch.distributed`` all
    processes train one model: each draws crops of its own, gradients are averaged, the first process writes. What fails in one fails
    in all, so that none is left waiting.

    Returns:
        Optimiser steps done since the run began.

    Raises:
        TrainingInputError: ``out`` holds a run with other settings or data, or a state that cannot be read, the loss is not finite,
            the processes see different folders, or another process failed.
    """
    out = Path(out)
    folder = out / TRAINING_FOLDER
    trained = nn.ParameterList([p for module in trainee.modules.values() for p in module.parameters() if p.requires_grad])
    device = next(iter(trained)).device
    logger.info("%s: %.2f M trained weights", trainee.name, sum(p.numel() for p in trained) / 1e6)
    with failing_together(device):
        if is_writer():
            remember_settings(folder, trainee.name, settings, trained_on(getattr(trainee, "slices", ())))
    ema, spent = Ema(trained), _Spent()
    peak = settings.rate or trainee.rate
    optimizer = torch.optim.AdamW(trained.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    with failing_together(device):
        record = _Record(trainee, trained, {"trained": trained, "ema": ema, "optimizer": optimizer, "spent": spent}, settings, folder)
        _take_up(record)
    if not alike(spent.steps, device):
        raise TrainingInputError(f"{out} must be on a disk that all processes see: the run to go on with is not in every one's")
    same_weights(list(trained))
    budget, rate = _Budget(settings, spent), cosine_rate(peak, FLOOR * peak)
    progress = first_process_value(budget.progress(), device)
    try:
        with failing_together(device):
            trainee.reseed(settings.seed + spent.steps + SEEDS_APART * process_rank())
            record.starts(progress)
        recent = 0.0
        while (progress := first_process_value(budget.progress(), device)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = rate(progress)
            loss = _step(trainee, trained, optimizer, settings, progress)
            ema.update(trained)
            spent.steps += 1
            recent = loss if recent == 0 else 0.95 * recent + 0.05 * loss
            with failing_together(device):
                record.step(progress, loss=recent, rate=rate(progress))
    except KeyboardInterrupt:
        record.save(min(progress, 1.0))
        logger.warning("stopped at step %d; the same command goes on from there", spent.steps)
        raise
    else:
        with failing_together(device):
            record.save(1.0)
            record.draw()
            record.write(out)
    finally:
        record.close()
    return spent.steps


def _passed(progress: float, parts: int) -> int:
    return int(min(progress, 1.0) * parts) if parts else 0


def _step(
    trainee: Trainee, trained: nn.ParameterList, optimizer: torch.optim.Optimizer, settings: FineTuneSettings, progress: float
) -> float:
    optimizer.zero_grad()
    device = next(iter(trained)).device
    with failing_together(device):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = trainee.loss(progress)
        torch.autograd.backward(loss)
    value = averaged(loss)
    if not math.isfinite(value):
        raise TrainingInputError(f"the loss is {value}: training diverged; use a lower --rate than {optimizer.param_groups[0]['lr']:g}")
    average_gradients(list(trained))
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
