"""Train the latent validator: one-step segmentation of lesions that stays empty on normal tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.progress_bars import without_progress_bars
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.validator import TINY_CONFIG, LatentSegmenter, LatentValidator, load_validator, mask_latents, save_validator
from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.captions import caption
from monai_diffaug.training.crop_sampler import Crop, CropBatch
from monai_diffaug.training.crops import blurred
from monai_diffaug.training.diffusion_loss import encode_crops
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.recipe import Recipe
from monai_diffaug.training.recipes.latent_screen_recipe import repaint, with_findings
from monai_diffaug.training.recipes.vae_recipe import load_vae
from monai_diffaug.training.sample_pictures import draw_masks, evenly
from monai_diffaug.training.validator_loss import fit_probe, validator_loss

__all__ = ["ValidatorRecipe"]

FRESH_RATE, TRAINED_RATE = 1e-3, 2e-4
NORMAL_SHARE = 0.38
COUNTERFEIT_SHARE = 0.55  # of the normal crops have a filled outline
COVER_SHARE = 0.08  # of the lesions are hidden
DISGUISE_SHARE = 0.3  # of the lesions are changed within a seam, so that a seam alone is neither a lesion nor a counterfeit
INSIDE_SHARE = 0.4
EDITED_SHARE = 0.25  # of the crops of a step show the inpainter's work, see ``_edited``
EDITED_FIRST, EDITED_CAPACITY, EDITED_RENEWAL = 256, 768, 0.06  # see ``EncodedRing``; a crop costs up to 0.25 s on a CPU
KIND_SHARES = (0.4, 0.35, 0.25)  # of these: decoded as they are, repainted as normal tissue, a finding in one step
ERASING_STEPS = 8
EDGE_PX = 2.0
BLUR_SHARE = 0.35  # painted tissue is softer than recorded tissue
PROBE_CROPS = 96


class ValidatorRecipe(Recipe):
    """Train the segmenter of a ``LatentValidator``; its VAE stays frozen and is written next to it.

    The loss is |z0 - z0hat| (x0 form), or |eps - eps_th| + |z0 - z0hat| (SDSeg, Lin et al., MICCAI 2024), with Dice and cross-entropy of
    the mask that a linear probe reads from z0hat. Four crops in ten show normal tissue, half of them with a counterfeit: a flat patch,
    other tissue, a lesion of another organ. Some lesions are hidden; others change their brightness within a seam and stay lesions. A
    quarter of the crops was edited by ``settings.inpainter``: decoded as they were (a lesion stays one), repainted as normal tissue, or
    repainted with a finding in a single step, which is too few for a lesion.

    The embedded validator::

        monai-diffaug train validator --data datalist.json --model fresh --vae runs/vae --out runs/validator --minutes 36
        monai-diffaug train validator --data datalist.json --model runs/validator --out runs/validator2 --rate 6e-4 --minutes 50

    ``settings.model`` is "fresh", "tiny" or a validator's folder; a validator without contrast views gets them, with weights of zero.
    For fresh weights ``settings.vae`` is the autoencoder whose latents they predict, and ``settings.prediction_type`` the form.

    Raises:
        ModelSourceError: nothing loadable under one of the sources.
        ValueError: the model is no latent validator.
    """

    name = "validator"
    options = ("vae", "prediction_type", "inpainter")
    crop_options = {
        "normal_share": NORMAL_SHARE,
        "counterfeit_share": COUNTERFEIT_SHARE,
        "cover_share": COVER_SHARE,
        "disguise_share": DISGUISE_SHARE,
        "inside_share": INSIDE_SHARE,
        "blur_share": BLUR_SHARE,
    }

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
            self.validator = LatentValidator(with_views(validator.segmenter), validator.vae, self.device)
        self.inpainter = load_inpainter(ModelSpec("inpainter", self.settings.inpainter), self.device)
        self.segmenter, self.vae = self.validator.segmenter.requires_grad_(True), self.validator.vae
        if self.device.type == "cpu":
            for network in (self.segmenter, self.vae):
                network.to(memory_format=torch.channels_last)
        self.modules, self.rate = {"segmenter": self.segmenter}, FRESH_RATE if self.is_fresh else TRAINED_RATE
        self.size_px = int(self.segmenter.config["size_px"])

    def reseed(self, seed: int) -> None:
        super().reseed(seed)
        self.probe = fit_probe(self.vae, self.sampler(self.settings.seed).draw_batch(PROBE_CROPS).lesions.to(self.device))

        self.edited: EncodedRing | None = None  # made when it is needed

    def loss(self, progress: float = 0.0) -> Tensor:
        edited = round(EDITED_SHARE * self.settings.batch_size)
        batch = self.crops.draw_batch(self.settings.batch_size - edited)
        images, masks = batch.images, batch.lesions
        if edited:
            if self.edited is None:
                self.edited = EncodedRing(self.crops, self._edited, EDITED_FIRST, EDITED_CAPACITY, EDITED_RENEWAL)
            (edited_images, edited_masks), _ = self.edited.batch(edited)
            images, masks = torch.cat([images, edited_images]), torch.cat([masks, edited_masks])
        images, masks = images.to(self.device), masks.to(self.device)
        with torch.no_grad():
            z0 = mask_latents(self.vae, masks).float()
        return validator_loss(self.segmenter, z0, images, masks, self.probe, self.generator)

    @torch.no_grad()
    def _edited(self, batch: CropBatch) -> tuple[Tensor, Tensor]:
        """Crops (N, 3, S, S) in [-1, 1] that the inpainter edited under their masks, and the masks of the lesions that are left."""
        kind = self.crops.rng.choice(3, p=KIND_SHARES)
        encoded = encode_crops(self.inpainter, batch.images.to(self.device), batch.hidden.to(self.device))
        latents, lesions = encoded.latents, batch.lesions
        if kind > 0:
            is_erased = kind == 1
            texts = [self._normal_caption(crop) for crop in batch.crops] if is_erased else with_findings(self.crops, batch)
            guidance_scale = float(self.crops.rng.choice((1.0, 3.0)))
            latents, _ = repaint(self.inpainter, encoded, texts, ERASING_STEPS if is_erased else 1, guidance_scale, self.generator)
            lesions = torch.zeros_like(lesions)
        pictures = self.inpainter.decode(latents).clamp(-1, 1).float().cpu()
        soft = blurred(batch.hidden, EDGE_PX)
        return batch.images * (1 - soft) + pictures * soft, lesions

    def _normal_caption(self, crop: Crop) -> str:
        origin = crop.origin
        return caption(self.crops.rng, origin.modality, origin.anatomy, NORMAL, None) if origin.modality and origin.anatomy else NORMAL

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


@torch.no_grad()
def with_views(segmenter: LatentSegmenter) -> LatentSegmenter:
    """The segmenter, or one with the contrast views of ``TINY_CONFIG``, whose weights start at zero, if it has none."""
    if segmenter.views:
        return segmenter
    wider = LatentSegmenter({**segmenter.config, "contrast_views": TINY_CONFIG["contrast_views"]})
    weights = segmenter.state_dict()
    first = wider.condition.conv_in.weight
    weights["condition.conv_in.weight"] = F.pad(
        weights["condition.conv_in.weight"], (0, 0, 0, 0, 0, first.shape[1] - segmenter.condition.conv_in.in_channels)
    )
    wider.load_state_dict(weights)
    return wider.to(first.dtype)
