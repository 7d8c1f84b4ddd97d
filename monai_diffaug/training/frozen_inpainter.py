"""The inpainter beside which another network is trained; it stays as it is."""

from __future__ import annotations

import torch

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError

__all__ = ["frozen_inpainter"]


def frozen_inpainter(settings: FineTuneSettings, trained: str) -> Inpainter:
    """The inpainter that the settings name.

    Args:
        settings: of the run.
        trained: what is trained beside it, with its article; begins the errors' text.

    Raises:
        ModelSourceError: nothing loadable under ``settings.model``.
        TrainingInputError: LoRA or the text encoder is asked for, or the model predicts the clean sample.
    """
    if settings.lora or settings.text_encoder:
        raise TrainingInputError(f"{trained} is trained whole, beside a frozen model: leave out --lora and --text-encoder")
    model = load_inpainter(ModelSpec("inpainter", settings.model), torch.device(settings.device))
    predicts = model.scheduler.config.prediction_type
    if predicts not in ("v_prediction", "epsilon"):
        raise TrainingInputError(f"{trained} needs a model that predicts velocity or noise; {settings.model} predicts {predicts!r}")
    return model
