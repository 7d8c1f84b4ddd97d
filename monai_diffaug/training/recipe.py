"""The part that all recipes have in common: settings, the check of their options, slices and the crop sampler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import nn

from monai_diffaug.training.crop_sampler import CropSampler
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError
from monai_diffaug.training.sample_pictures import lesions_to_show

__all__ = ["Recipe", "seeded"]

OF_FRESH_WEIGHTS = ("vae", "encoder", "prediction_type")
OF_TRAINED_WEIGHTS = ("lora", "freeze_encoder")
OTHERS = ("text_encoder", "decoder", "texture_weight", "inpainter", "validator", "student_steps", "guidance")
OF_SOME_RECIPES = (*OF_FRESH_WEIGHTS, *OF_TRAINED_WEIGHTS, *OTHERS)


class Recipe:
    """Base class of the recipes; a recipe implements ``build`` and the methods of ``training.loop.Trainee``.

    Args:
        settings: of the run.
        slices: to train on.
        held_out: shown in the sample pictures; the training slices when empty.

    Attributes:
        name: of the recipe.
        options: those settings in ``OF_SOME_RECIPES`` that the recipe takes.
        crop_options: of its ``CropSampler``.
        size_px: side of its crops.

    Raises:
        TrainingInputError: a setting has no meaning for the recipe.
    """

    name: str = ""
    options: ClassVar[tuple[str, ...]] = ()
    crop_options: ClassVar[Mapping[str, Any]] = {}
    size_px: int
    rate: float
    modules: Mapping[str, nn.Module]

    def __init__(self, settings: FineTuneSettings, slices: Sequence[LabelledSlice], held_out: Sequence[LabelledSlice] = ()) -> None:
        self.check(settings)
        self.settings, self.device, self.is_fresh = settings, torch.device(settings.device), settings.model == "fresh"
        self.slices = [each for each in slices if self.uses(each)]
        self.held_out = lesions_to_show(held_out, slices)
        with seeded(settings.seed):
            self.build()

    @classmethod
    def check(cls, settings: FineTuneSettings) -> None:
        """Refuse settings that have no meaning for this recipe or this start; nothing is loaded for it.

        Raises:
            TrainingInputError: such a setting differs from its default.
        """
        defaults = {field.name: field.default for field in fields(settings)}
        for option in (name for name in OF_SOME_RECIPES if getattr(settings, name) != defaults[name]):
            flag = f"--{option.replace('_', '-')}"
            if option not in cls.options:
                raise TrainingInputError(f"{flag} has no meaning for {cls.name}; leave it out")
            if settings.model != "fresh" and option in OF_FRESH_WEIGHTS:
                raise TrainingInputError(f"{flag} is for --model fresh; {settings.model} is trained as it is, leave it out")
            if settings.model == "fresh" and option in OF_TRAINED_WEIGHTS:
                raise TrainingInputError(f"{flag} needs a trained model to start from, got --model fresh; leave it out")

    def uses(self, chosen: LabelledSlice) -> bool:
        """The recipe can learn from a slice."""
        return True

    def build(self) -> None:
        """Load or make the networks; new weights depend on the seed of the settings alone."""
        raise NotImplementedError

    def reseed(self, seed: int) -> None:
        """Start new streams of random numbers: ``generator`` on the CPU, and the sampler ``crops``."""
        self.generator = torch.Generator().manual_seed(seed)
        self.crops = self.sampler(seed)

    def sampler(self, seed: int) -> CropSampler:
        """A sampler of the recipe's crops."""
        return CropSampler(self.slices, self.size_px, seed, shares=self.settings.shares, **self.crop_options)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's random numbers depend on the seed alone; afterwards its generator is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
