"""The one training loop of all recipes: rate, average, stop and resume, sample pictures, export; on one process or several."""

from __future__ import annotations

import logging
import math
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from monai_diffaug.training.checkpoint import Budget, Ema, cosine_rate, load_state, save_state
from monai_diffaug.training.model_folder import replace_parts, require_own_folder
from monai_diffaug.training.processes import (
    alike,
    average_gradients,
    averaged,
    failing_together,
    first_process_value,
    is_alone,
    is_writer,
    largest,
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
SEED_STRIDE = 1_000_003  # between the seeds of two processes; more than a run has steps
FLOOR = 0.02  # the learning rate falls to this share of its peak
FAST_FACTOR = 3.0  # of the rate, for the parameters in ``fast``
SIGTERM_EXIT = 128 + signal.SIGTERM  # 143, as a shell reports it


class Trainee(Protocol):
    """Interface of a recipe, which is built as ``Recipe(settings, slices, held_out)``.

    Attributes:
        name: of the recipe.
        modules: modules to train: those of their parameters that require a gradient.
        rate: peak learning rate, unless the settings have one.
        slices: optional; the ``LabelledSlice``s that it draws from. A run is resumed with the same slices only.
        fast: optional; parameters that learn three times as fast, e.g. fresh layers among trained ones.
    """

    name: str
    modules: Mapping[str, nn.Module]
    rate: float

    def reseed(self, seed: int) -> None:
        """Start new streams of random numbers, so that a resumed run does not draw the same crops again."""
        ...

    def loss(self, progress: float) -> Tensor:
        """Scalar loss of a new batch; ``progress`` in [0, 1) is the share of the run that is over, for recipes with phases."""
        ...

    def draw(self, file: Path) -> None:
        """Write a PNG that shows the output of the modules."""
        ...

    def write(self, folder: Path) -> None:
        """Write the model into an empty folder, in the layout that its transform loads."""
        ...


class _StopSignals:
    """Within the block Ctrl-C (SIGINT) and SIGTERM are noted in ``received``, so that the step is finished first.

    A second signal has its usual effect at once; not with several processes, where Ctrl-C reaches each of them twice: from the terminal and
    from ``torchrun``. Outside the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.received = 0
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._usual = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._usual = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or number
        if is_alone():
            self.__exit__()
            logger.warning("stopping after this step; a second signal stops at once")


def _end_as(number: int) -> None:
    """End as a signal does by default: KeyboardInterrupt after Ctrl-C, exit code 143 after SIGTERM."""
    if number == signal.SIGTERM:
        sys.exit(SIGTERM_EXIT)
    raise KeyboardInterrupt


class _Record:
    """Writes state, log, pictures and model of a run into its folder; does nothing in a process that is not the writer."""

    def __init__(
        self, trainee: Trainee, trained: nn.ParameterList, parts: Mapping[str, Any], settings: FineTuneSettings, folder: Path
    ) -> None:
        self.trainee, self.trained, self.parts, self.folder = trainee, trained, dict(parts), folder
        self.pictures = settings.pictures
        self.log = TrainingLog(folder, tensorboard=settings.tensorboard) if is_writer() else None
        self.drawn = self.saved = 0

    @property
    def state(self) -> Path:
        return self.folder / STATE_FILE

    def start(self, progress: float) -> None:
        """Count from this progress; draw the pictures of a run that has not made a step yet."""
        self.drawn, self.saved = _passed(progress, self.pictures), _passed(progress, CHECKPOINTS)
        if self.parts["spent"].steps == 0:
            self.draw()

    def step(self, progress: float, **figures: float) -> None:
        """Write figures, state and pictures of a step, each when it is due."""
        if self.log is None:
            return
        if self.parts["spent"].steps == 1 or self.parts["spent"].steps % LOG_EVERY == 0:
            self.log.figures(self.parts["spent"].steps, progress, **figures)
        if _passed(progress, CHECKPOINTS) > self.saved:
            self.saved = _passed(progress, CHECKPOINTS)
            self.save(progress)
        if _passed(progress, self.pictures) > self.drawn:
            self.drawn = _passed(progress, self.pictures)
            self.draw()

    def save(self, progress: float) -> None:
        if self.log is not None:
            save_state(self.state, self.parts, progress)

    def draw(self) -> None:
        """Draw the output of the averaged weights."""
        if self.log is None:
            return
        step = self.parts["spent"].steps
        file = self.folder / "samples" / f"step_{step:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad(), _averaged(self.trained, self.parts["ema"]):
            self.trainee.draw(file)
        self.log.picture(step, file)

    def write(self, out: Path) -> None:
        """Write the averaged model; no half-written file is ever at its final place."""
        if self.log is None:
            return
        part = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=self.folder))
        try:
            with _averaged(self.trained, self.parts["ema"]):
                self.trainee.write(part)
            replace_parts(part, out, self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def _resume(record: _Record) -> None:
    """Load the state of an earlier run, if there is one.

    Raises:
        TrainingInputError: it is cut, or of another shape.
    """
    try:
        load_state(record.state, record.parts)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingInputError(
            f"{record.state} does not fit this run ({reason}); use --restart to begin again, or another --out"
        ) from error


def fine_tune(trainee: Trainee, settings: FineTuneSettings, out: Path | str) -> int:
    """Train until the budget is spent, from where an earlier run in ``out`` stopped, and write the averaged model to ``out``.

    ``out/training`` holds the state, the settings, ``log.jsonl`` and ``samples/``. After Ctrl-C or SIGTERM the step is finished and its
    state saved; then KeyboardInterrupt is raised, or the process exits with code 143. In a process group of ``torch.distributed`` all
    processes train one model: each draws other crops, gradients are averaged, the first process writes. A failure or a signal in one
    process ends all of them, so that none is left waiting.

    Returns:
        Optimiser steps since the run began.

    Raises:
        TrainingInputError: ``out`` holds files but no run, a run with other settings or data, a state that cannot be read, or files of
            others at the places of the model; the loss is not finite, the processes see different folders, or another process failed.
        KeyboardInterrupt: Ctrl-C; the state of the last step is saved.
        SystemExit: SIGTERM; likewise.
    """
    out = Path(out)
    folder = out / TRAINING_FOLDER
    trained = nn.ParameterList([p for module in trainee.modules.values() for p in module.parameters() if p.requires_grad])
    device = next(iter(trained)).device
    logger.info("%s: %.2f M trained weights", trainee.name, sum(p.numel() for p in trained) / 1e6)
    with failing_together(device):
        if is_writer():
            require_own_folder(out, folder)
            remember_settings(folder, trainee.name, settings, trained_on(getattr(trainee, "slices", ())))
    ema, spent = Ema(trained), Budget(settings.minutes, settings.steps)
    peak = settings.rate or trainee.rate
    optimizer, rate = _optimizer(trainee, trained, peak), cosine_rate(peak, FLOOR * peak)
    with failing_together(device):
        record = _Record(trainee, trained, {"trained": trained, "ema": ema, "optimizer": optimizer, "spent": spent}, settings, folder)
        _resume(record)
    if not alike(spent.steps, device):
        raise TrainingInputError(f"{out} must be on a disk that all processes see: not every process finds the run to resume")
    same_weights(list(trained))
    progress = first_process_value(spent.progress(), device)
    stopped, recent = 0, 0.0
    try:
        with _StopSignals() as signals:
            with failing_together(device):
                trainee.reseed(settings.seed + spent.steps + SEED_STRIDE * process_rank())
                record.start(progress)
            while (progress := first_process_value(spent.progress(), device)) < 1:
                if stopped := int(largest(signals.received, device)):
                    break
                for group in optimizer.param_groups:
                    group["lr"] = rate(progress) * group["factor"]
                loss = _step(trainee, trained, optimizer, settings, progress)
                ema.update(trained)
                spent.steps += 1
                recent = loss if recent == 0 else 0.95 * recent + 0.05 * loss
                with failing_together(device):
                    record.step(progress, loss=recent, rate=rate(progress))
        with failing_together(device):
            record.save(min(progress, 1.0))
            if not stopped:
                record.draw()
                record.write(out)
    finally:
        record.close()
    if stopped:
        if is_writer():
            logger.warning("stopped at step %d; the same command goes on from there", spent.steps)
        _end_as(stopped)
    return spent.steps


def _passed(progress: float, parts: int) -> int:
    return int(min(progress, 1.0) * parts) if parts else 0


def _optimizer(trainee: Trainee, trained: nn.ParameterList, peak: float) -> torch.optim.Optimizer:
    is_fast = {id(p) for p in getattr(trainee, "fast", ())}
    groups = [
        {"params": [p for p in trained if id(p) not in is_fast], "factor": 1.0},
        {"params": [p for p in trained if id(p) in is_fast], "factor": FAST_FACTOR},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)


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
    raw = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for parameter, mean in zip(trained, ema.module.parameters(), strict=True):
            parameter.copy_(mean)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, raw, strict=True):
                parameter.copy_(value)
