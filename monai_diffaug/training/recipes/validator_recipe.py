"""Train the latent validator: one-step segmentation of lesions that stays empty on normal tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.models.progress_bars import without_progress_bars
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.validator import TINY_CONFIG, LatentSegmenter, LatentValidator, load_validator, mask_latents, save_validator
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.recipe import Recipe
from monai_diffaug.training.recipes.vae_recipe import load_vae
from monai_diffaug.training.sample_pictures import draw_masks, evenly
from monai_diffaug.training.validator_loss import fit_probe, validator_loss

__all__ = ["ValidatorRecipe"]

FRESH_RATE, TRAINED_RATE = 1e-3, 2e-4
COUNTERFEIT_SHARE = 0.5  # of the normal crops have a filled outline, so that a seam alone is no lesion
BLUR_SHARE = 0.35  # painted tissue is softer than recorded tissue
PROBE_CROPS = 96


class ValidatorRecipe(Recipe):
    """Train the segmenter of a ``LatentValidator``; its VAE stays frozen and is written next to it.

    The loss is |z0 - z0hat| (x0 form), or |eps - eps_th| + |z0 - z0hat| (SDSeg, Lin et al., MICCAI 2024), with Dice and cross-entropy of
    the mask that a linear probe reads from z0hat. Three crops in ten show normal tissue, half of them with a counterfeit outline.

    The embedded validator::

        monai-diffaug train validator --data datalist.json --model fresh --vae runs/vae --out runs/validator --minutes 36
        monai-diffaug train validator --data datalist.json --model runs/validator --out runs/validator2 --rate 6e-4 --minutes 50

    ``settings.model`` is "fresh", "tiny" or a validator's folder. For fresh weights ``settings.vae`` is the autoencoder whose latents they
    predict, and ``settings.prediction_type`` the form.

    Raises:
        ModelSourceError: nothing loadable under one of the sources.
        ValueError: the model is no latent validator.
    """

    name = "validator"
    options = ("vae", "prediction_type")
    crop_options = {"counterfeit_share": COUNTERFEIT_SHARE, "blur_share": BLUR_SHARE}

    def uses(self, chosen: LabelledSlice) -> bool:
        """A finding without an outline is no normal tissue, and shows no mask to learn."""
        return chosen.has_lesion or chosen.is_normal

    def build(self) -> None:
        if self.is_fresh:
            segmenter = LatentSegmenter({**TINY_CONFIG, "prediction_type": self.settings.prediction_type})
            self.validator = LatentValidator(segmenter, load_vae(self.settings.vae), self.device)
        else:
            validator = load_validator(ModelSpec("validator", self.settings.model), self.device)
            if not isinstance(validator, LatentValidator):
                raise ValueError(f"{self.settings.model!r} is no latent validator; give 'tiny', 'fresh' or a folder that this recipe wrote")
            self.validator = validator
        self.segmenter, self.vae = self.validator.segmenter.requires_grad_(True), self.validator.vae
        if self.device.type == "cpu":
            for network in (self.segmenter, self.vae):
                network.to(memory_format=torch.channels_last)
        self.modules, self.rate = {"segmenter": self.segmenter}, FRESH_RATE if self.is_fresh else TRAINED_RATE
        self.size_px = int(self.segmenter.config["size_px"])

    def reseed(self, seed: int) -> None:
        super().reseed(seed)
        self.probe = fit_probe(self.vae, self.sampler(self.settings.seed).draw_batch(PROBE_CROPS).lesions.to(self.device))

    def loss(self, progress: float = 0.0) -> Tensor:
        batch = self.crops.draw_batch(self.settings.batch_size)
        images, masks = batch.images.to(self.device), batch.lesions.to(self.device)
        with torch.no_grad():
            z0 = mask_latents(self.vae, masks)
        return validator_loss(self.segmenter, z0, images, masks, self.probe, self.generator)

    def draw(self, file: Path) -> None:
        from monai_diffaug.transforms.latent_validate import LatentValidate

        judge = LatentValidate(self.validator, window=(-1.0, 1.0), device=str(self.device))
        shown = evenly(self.held_out)
        verdicts = [judge(s.image, torch.from_numpy(s.lesion[None].astype(np.uint8)), seed=i) for i, s in enumerate(shown)]
        draw_masks(shown, [v.predicted for v in verdicts], file, "result: mask predicted by the validator, brightened")

    def write(self, folder: Path) -> None:
        """A folder that ``model=`` of ``LatentValidated`` takes."""
        save_validator(self.segmenter, folder)
        with without_progress_bars():
            self.vae.save_pretrained(folder / "vae", safe_serialization=True)
