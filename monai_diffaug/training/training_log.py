"""The figures of a training run: one JSON line each, and optionally TensorBoard's event files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from monai_diffaug.errors import MissingExtraError

__all__ = ["TrainingLog"]

logger = logging.getLogger(__name__)


class TrainingLog:
    """Appends to ``log.jsonl`` in a folder.

    Args:
        folder: created when it is not there.
        tensorboard: also write ``folder/tensorboard``.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError(f"--tensorboard needs TensorBoard ({error}): pip install monai_diffaug[train]") from error
            writer: Any = SummaryWriter
            self._writer = writer(str(folder / "tensorboard"))
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "log.jsonl"

    def figures(self, step: int, progress: float, **values: float) -> None:
        """Write the figures of a step."""
        logger.info("%3.0f %% step %d %s", 100 * progress, step, " ".join(f"{name} {value:.4g}" for name, value in values.items()))
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "progress": round(progress, 4), **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, file: Path) -> None:
        """Show a PNG of the run."""
        logger.info("sample pictures: %s", file)
        if self._writer is not None:
            from PIL import Image

            with Image.open(file) as picture:
                self._writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
