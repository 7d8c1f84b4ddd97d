"""The settings of a training run, and the check that a resumed run has the same ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from monai_diffaug.files.picture import ImageFileError
from monai_diffaug.files.whole_file import whole_file

__all__ = ["SETTINGS_FILE", "STATE_FILE", "FineTuneSettings", "TrainingInputError", "remember_settings", "require_same_settings"]

SETTINGS_FILE = "settings.json"
STATE_FILE = "state.ckpt"
# settings that may differ when a run is resumed: length, device, memory and pictures
FREE = ("minutes", "steps", "batch_size", "device", "precision", "pictures", "tensorboard")


class TrainingInputError(ImageFileError):
    """The datalist, a file that it names, or an option of a training run cannot be used; says what to do."""


@dataclass(frozen=True)
class FineTuneSettings:
    """Settings of a run; a source is "tiny" (the embedded model), a folder, a hub id or a checkpoint, as its transform takes it.

    Raises:
        ValueError: an option out of range.
    """

    model: str = "tiny"  # source to start from, or "fresh": the embedded architecture with random weights
    minutes: float | None = 10.0  # running time; None when ``steps`` counts
    steps: int | None = None  # optimiser steps; None when ``minutes`` counts
    lora: bool = False  # inpaint, medsam: train low-rank adapters instead of all weights
    rank: int = 8  # of the adapters
    text_encoder: bool = False  # inpaint: train the text encoder too
    batch_size: int = 8  # crops per step; of several processes, in each
    rate: float | None = None  # peak learning rate; None takes the recipe's
    seed: int = 0  # of all draws, in [0, 2**32 - 1]
    device: str = "cpu"  # "cpu", "cuda" or "cuda:1"
    precision: str = "float32"  # or "bfloat16" for autocast
    pictures: int = 4  # times at which sample pictures are drawn, evenly over the run, in addition to those before the first step
    tensorboard: bool = False  # write TensorBoard's event files too
    shares: Mapping[str, float] = field(default_factory=dict)  # data set -> its share of the draws; the others share the rest equally
    decoder: bool | None = None  # inpaint: train the autoencoder's decoder too; None where a small model reproduces the images badly
    freeze_encoder: bool = False  # vae, medsam: train the decoder alone
    texture_weight: float = 0.0  # vae, inpaint: weight of the ``texture_loss`` of the autoencoder's decoder, e.g. 0.15
    inpainter: str = "tiny"  # controlnet, semantic-controller, latent-screen: source of the inpainter that the model is for;
    # validator: source of the one whose faulty edits it learns to refuse
    vae: str = "tiny"  # inpaint, validator, with fresh weights: source of the autoencoder on whose latents they work
    encoder: str = "tiny"  # semantic-controller with fresh weights: source of the MedSAM whose features it predicts
    validator: str = "tiny"  # latent-screen: source of the validator whose verdicts it learns
    prediction_type: str = "sample"  # validator with fresh weights: "sample" or "epsilon"
    student_steps: int = 4  # few-steps: sampling steps of the student
    guidance: float = 3.0  # few-steps: scale of the teacher's guidance that the student learns; 1 is none

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError(f"give minutes or steps, one of them; got minutes={self.minutes} and steps={self.steps}")
        for name in ("lora", "text_encoder", "tensorboard", "freeze_encoder"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.prediction_type not in ("sample", "epsilon"):
            raise ValueError(f"prediction_type must be 'sample' or 'epsilon', got {self.prediction_type!r}")
        if not 0 <= self.texture_weight < math.inf:
            raise ValueError(f"texture_weight must be >= 0 and finite, got {self.texture_weight}")
        if self.student_steps < 1:
            raise ValueError(f"student_steps must be >= 1, got {self.student_steps}")
        if not 1 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be >= 1 and finite, got {self.guidance}")
        if self.rank < 1 or self.batch_size < 1:
            raise ValueError(f"rank and batch_size must be >= 1, got {self.rank} and {self.batch_size}")


def _before(file: Path) -> dict[str, object]:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingInputError(f"{file} is no JSON ({error}); use --restart to begin again, or another --out") from error
    if not isinstance(before, dict):
        raise TrainingInputError(f"{file} holds no settings of a run; use another --out")
    return before


def require_same_settings(
    folder: Path, recipe: str, settings: FineTuneSettings, data: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Refuse to resume a run that had other settings or data; returns the settings of this run, as they are written.

    Settings that an older version has not written are unknown, and no reason to refuse. Nor is anything where there is no state yet.

    Args:
        folder: of the state.
        recipe: its name.
        settings: of this run.
        data: description of the data, see ``trained_on``; values as JSON holds them. None as long as they are not read.

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
                f"{folder.parent} holds a run with other settings: {', '.join(differing)}; use --restart to begin again, or another --out"
            )
    return now


def remember_settings(folder: Path, recipe: str, settings: FineTuneSettings, data: Mapping[str, object] | None = None) -> None:
    """Write the settings next to the state of the run, after ``require_same_settings``; same arguments and errors."""
    now = require_same_settings(folder, recipe, settings, data)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / SETTINGS_FILE
    with whole_file(file) as part:
        part.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
