"""Fine-tune the latent validator: one-step segmentation of the user's lesions, quiet on the normal tissue beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_diffaug.models.validator import mask_latents, save_validator
from monai_diffaug.training.embedded.train_validator import (
    BLUR_SHARE,
    COUNTERFEIT_SHARE,
    LesionCrops,
    LesionCropSampler,
    blurred,
    fit_probe,
    latent_validator,
    training_loss,
)
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.model_folder import replace_parts
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError
from monai_diffaug.training.sample_pictures import draw_masks, evenly, lesions_to_show
from monai_diffaug.training.slice_crops import SliceCropSampler

__all__ = ["ValidatorRecipe"]


class _ValidatorCrops(LesionCropSampler):
    """The validator's crops, counterfeits among the normal ones, from the user's slices."""

    def __init__(self, slices: Sequence[LabelledSlice], size_px: int, seed: int) -> None:
        self.sampler = SliceCropSampler(slices, size_px, seed)
        self.rng = self.sampler.rng

    def draw(self, n: int) -> LesionCrops:
        images, masks = [], []
        for _ in range(n):
            crop = self.sampler.draw()
            image, mask = crop.image, crop.mask
            if crop.is_normal:
                if self.rng.rand() < COUNTERFEIT_SHARE:
                    image = self._counterfeit((image + 1) / 2, mask).clamp(0, 1) * 2 - 1
                mask = torch.zeros_like(mask)
            if self.rng.rand() < BLUR_SHARE:
                image = blurred(image[None], self.rng.uniform(0.4, 1.3))[0]
            images.append(image)
            masks.append(mask)
        return LesionCrops(torch.stack(images), torch.stack(masks))


class ValidatorRecipe:
    """Trains the segmenter of a ``LatentValidator``; its VAE stays frozen and is written beside it.

    Args:
        settings: see ``FineTuneSettings``; runs on the CPU, as the network is small.
        slices: to train on.
        held_out: shown in the sample pictures.

    Raises:
        TrainingInputError: LoRA was asked for: the network is convolutional and small.
        ModelSourceError: no validator under ``settings.model``.
        ValueError: it is no latent validator.
    """

    name = "validator"

    def __init__(self, settings: FineTuneSettings, slices: Sequence[LabelledSlice], held_out: Sequence[LabelledSlice] = ()) -> None:
        if settings.lora:
            raise TrainingInputError("--lora is not for the validator: its 1.8 M convolutional weights are trained whole")
        if torch.device(settings.device).type != "cpu":
            raise TrainingInputError(f"the validator trains on the CPU, got --device {settings.device}; leave it out")
        self.settings, self.validator = settings, latent_validator(settings.model)
        self.segmenter, self.vae = self.validator.segmenter.requires_grad_(True), self.validator.vae
        self.size_px = int(self.segmenter.config["size_px"])
        self.modules: Mapping[str, nn.Module] = {"segmenter": self.segmenter}
        self.rate = 2e-4
        self.slices, self.held_out = list(slices), lesions_to_show(held_out, slices)

    def reseed(self, seed: int) -> None:
        self.crops = _ValidatorCrops(self.slices, self.size_px, seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.probe = fit_probe(self.vae, _ValidatorCrops(self.slices, self.size_px, self.settings.seed))

    def loss(self, progress: float = 0.0) -> Tensor:
        crops = self.crops.draw(self.settings.batch_size)
        with torch.no_grad():
            z0 = mask_latents(self.vae, crops.masks)
        return training_loss(self.segmenter, z0, crops, self.probe, self.generator)

    def draw(self, file: Path) -> None:
        from monai_diffaug.transforms.latent_validate import LatentValidate

        judge = LatentValidate(self.validator, window=(-1.0, 1.0))
        shown = evenly(self.held_out)
        verdicts = [judge(s.image, torch.from_numpy(s.lesion[None].astype(np.uint8)), seed=i) for i, s in enumerate(shown)]
        draw_masks(shown, [v.predicted for v in verdicts], file, "result: what the validator finds, brightened")

    def write(self, folder: Path) -> None:
        part = folder / "training" / "part"
        vae: Any = self.vae
        save_validator(self.segmenter, part)
        vae.save_pretrained(part / "vae", safe_serialization=True)
        replace_parts(part, folder)
