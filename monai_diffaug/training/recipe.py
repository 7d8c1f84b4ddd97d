"""The part that all recipes have in common: settings, the check of their options, slices and the crop sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar

import torch

from monai_diffaug.training.crop_sampler import CropSampler
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError
from monai_diffaug.training.sample_pictures import lesions_to_show

__all__ = ["FRESH", "Recipe", "seeded"]

FRESH = "fresh"
OF_SOME_RECIPES = (
    "lora",
    "text_encoder",
    "decoder",
    "freeze_encoder",
    "inpainter",
    "vae",
    "encoder",
    "validator",
    "prediction_type",
)
OF_FRESH_WEIGHTS = ("vae", "encoder", "prediction_type")
OF_TRAINED_WEIGHTS = ("lora", "freeze_encoder")


class Recipe:
    """Base class of the recipes.

    Args:
        settings: of the run.
        slices: to train on.
        held_out: shown in the sample pictures; the training slices when empty.

    Attributes:
        name: of the recipe.
        options: names of those settings, among ``OF_SOME_RECIPES``, that the recipe takes.
    """

    name: str = ""
    options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: FineTuneSettings, slices: Sequence[LabelledSlice], held_out: Sequence[LabelledSlice] = ()) -> None:
        self.check(settings)
        self.settings = settings
        self.device = torch.device(settings.device)
        self.slices, self.held_out = list(slices), lesions_to_show(held_out, slices)

    @classmethod
    def check(cls, settings: FineTuneSettings) -> None:
        """Refuse options that have no meaning for this recipe or this start; nothing is loaded for it.

        Raises:
            TrainingInputError: such an option differs from its default.
        """
        defaults = {field.name: field.default for field in fields(settings)}
        for option in OF_SOME_RECIPES:
            if getattr(settings, option) == defaults[option]:
                continue
            flag = f"--{option.replace('_', '-')}"
            if option not in cls.options:
                raise TrainingInputError(f"{flag} has no meaning for {cls.name}; leave it out")
            if settings.model != FRESH and option in OF_FRESH_WEIGHTS:
                raise TrainingInputError(f"{flag} is for --model fresh; {settings.model} is trained as it is, leave it out")
            if settings.model == FRESH and option in OF_TRAINED_WEIGHTS:
                raise TrainingInputError(f"{flag} needs a trained model to start from, got --model fresh; leave it out")

    @property
    def is_fresh(self) -> bool:
        """The trained network starts with random weights."""
        return self.settings.model == FRESH

    def sampler(self, size_px: int, seed: int, **options: Any) -> CropSampler:
        """A sampler of the slices, with the settings' shares of the data sets; ``options`` are those of ``CropSampler``."""
        return CropSampler(self.slices, size_px, seed, shares=self.settings.shares, **options)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block new weights depend on the seed alone; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
