"""The settings of a fine-tuning run, and what makes two runs the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from monai_diffaug.files.image_file import ImageFileError

__all__ = ["STATE_FILE", "FineTuneSettings", "TrainingInputError", "remember_settings", "require_same_settings"]

SETTINGS_FILE = "settings.json"
STATE_FILE = "state.ckpt"
# what may differ when a run goes on: how long it takes, where it runs, what fits there and what it shows
FREE = ("minutes", "steps", "batch_size", "device", "precision", "pictures", "tensorboard")


class TrainingInputError(ImageFileError):
    """The datalist, a file that it names, or an option of a training run cannot be used; says what to do."""


@dataclass(frozen=True)
class FineTuneSettings:
    """What a recipe is told beside its data.

    Attributes:
        model: source to start from: "tiny", a folder, a hub id or a checkpoint, as the transform takes it.
        minutes: running time; None when ``steps`` counts.
        steps: optimiser steps; None when ``minutes`` counts.
        lora: train low-rank adapters instead of all weights.
        rank: of the adapters.
        text_encoder: train the text encoder too.
        batch_size: crops in one step; of several processes, in each.
        rate: peak learning rate; None takes the recipe's.
        seed: of all draws, in [0, 2**32 - 1].
        device: "cpu", "cuda" or "cuda:1".
        precision: "float32", or "bfloat16" for autocast.
        pictures: how often sample pictures are drawn, evenly over the run, beside those before the first step.
        tensorboard: write TensorBoard's event files too.
        decoder: of the inpainter: train the autoencoder's decoder too; None where a small model shows the images badly.
        encoder: of the semantic controller: source of the MedSAM whose features it predicts.
    """

    model: str = "tiny"
    minutes: float | None = 10.0
    steps: int | None = None
    lora: bool = False
    rank: int = 8
    text_encoder: bool = False
    batch_size: int = 8
    rate: float | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"
    pictures: int = 4
    tensorboard: bool = False
    decoder: bool | None = None
    encoder: str = "tiny"

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError(f"give minutes or steps, one of them; got minutes={self.minutes} and steps={self.steps}")
        for name in ("lora", "text_encoder", "tensorboard"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.rank < 1 or self.batch_size < 1:
            raise ValueError(f"rank and batch_size must be >= 1, got {self.rank} and {self.batch_size}")


def _before(file: Path) -> dict[str, object]:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingInputError(f"{file} is no JSON ({error}); use --restart to begin anew, or another --out") from error
    if not isinstance(before, dict):
        raise TrainingInputError(f"{file} holds no settings of a run; use another --out")
    return before


def require_same_settings(
    folder: Path, recipe: str, settings: FineTuneSettings, data: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Refuse to go on with a run that had other settings or data; returns those of this run, as they are written.

    What an older version has not written is unknown, and no reason to refuse; where there is no state yet, nothing is lost.

    Args:
        folder: of the state.
        recipe: its name.
        settings: of this run.
        data: what it is trained on, see ``trained_on``; values as JSON holds them. None while that is not read.

    Raises:
        TrainingInputError: the folder holds a run with other settings; names them.
    """
    now: dict[str, object] = {"recipe": recipe, **asdict(settings), **(data or {})}
    file = folder / SETTINGS_FILE
    if file.is_file():
        before = _before(file)
        differing = [f"{name} {before[name]!r} (now {value!r})" for name, value in now.items() if before.get(name, value) != value]
        differing = [text for text in differing if text.split(" ", 1)[0] not in FREE]
        if differing and (folder / STATE_FILE).is_file():
            raise TrainingInputError(
                f"{folder.parent} holds a run with other settings: {', '.join(differing)}; use --restart to begin anew, or another --out"
            )
    return now


def remember_settings(folder: Path, recipe: str, settings: FineTuneSettings, data: Mapping[str, object] | None = None) -> None:
    """Write the settings beside the run's state, after ``require_same_settings``, with its arguments and errors."""
    now = require_same_settings(folder, recipe, settings, data)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / SETTINGS_FILE
    part = file.with_suffix(".part")
    part.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    part.replace(file)
