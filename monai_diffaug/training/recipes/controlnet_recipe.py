"""Train a ControlNet for edges, next to a frozen inpainter."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.edit.options import ControlNet
from monai_diffaug.masks.edges import canny, control_image, scharr
from monai_diffaug.models.controlnet import EMBEDDING_WIDTHS, ControlledDenoiser, build_controlnet, check_fit, load_controlnet
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.progress_bars import without_progress_bars
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.captions import with_dropout
from monai_diffaug.training.crop_sampler import Crop, CropBatch
from monai_diffaug.training.diffusion_loss import EncodedCrops, denoising_loss, encode_crops
from monai_diffaug.training.embedded.architectures import CONTROL_WIDTHS
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.recipe import Recipe
from monai_diffaug.training.sample_pictures import draw_inpainted

__all__ = ["ControlNetRecipe", "augmented_control", "noisy_steps"]

FRESH_RATE, TRAINED_RATE = 4e-4, 2e-4
FRESH_LAYERS = "controlnet_"  # diffusers' prefix of the layers that the UNet does not have
SMALL = 50e6  # parameters of a UNet below which the ControlNet's embedding is narrow
TEXT_DROPOUT = 0.3  # the unconditional branch of guidance has to keep the edges too
WHOLE_SHARE = 0.4  # crops that are hidden whole: EMIT-Diff's whole-slice mode (Zhang et al., TMI 2024)
SCHARR_SHARE = 0.25
ERASED_SHARE = 0.2
RESCALED_SHARE = 0.4


class ControlNetRecipe(Recipe):
    """Train a ControlNet that shows edges to an inpainter, which stays as it is.

    Fresh weights are a copy of the UNet's encoder with zero outputs (Zhang et al., ICCV 2023): before the first step the ControlNet
    changes nothing. The loss is ``lesion_weighted_loss`` of the steered UNet. Timesteps have the density of T2I-Adapter's cubic
    sampling (Mou et al., AAAI 2024): late in the sampling the latents show the edges themselves, and nothing is left to learn.

    The embedded ControlNet::

        monai-diffaug train controlnet --data datalist.json --model fresh --out runs/controlnet --minutes 20

    ``settings.inpainter`` is the frozen model; ``settings.model`` is "fresh", "tiny", or the folder or hub id of a ControlNet for it.

    Raises:
        ModelSourceError: nothing loadable under one of the sources.
        ValueError: the ControlNet does not fit the inpainter.
    """

    name = "controlnet"
    options = ("inpainter",)
    crop_options = {"whole_share": WHOLE_SHARE}

    def build(self) -> None:
        self.model = load_inpainter(ModelSpec("inpainter", self.settings.inpainter), self.device)
        if self.is_fresh:
            is_small = sum(p.numel() for p in self.model.unet.parameters()) < SMALL
            network = build_controlnet(self.model.unet, self.model.factor, widths=CONTROL_WIDTHS if is_small else EMBEDDING_WIDTHS)
        else:
            network = load_controlnet(ModelSpec("controlnet", self.settings.model), self.device)
            check_fit(network, self.model.unet)
        self.controlnet: Any = network.to(self.device).train().requires_grad_(True)
        self.modules, self.rate = {"controlnet": self.controlnet}, FRESH_RATE if self.is_fresh else TRAINED_RATE
        fresh_layers = [p for name, p in self.controlnet.named_parameters() if name.startswith(FRESH_LAYERS)]
        self.fast = fresh_layers if self.is_fresh else []
        self.size_px = self.model.size_px

    def reseed(self, seed: int) -> None:
        super().reseed(seed)
        self.ring = EncodedRing(self.crops, self._encode)

    def _encode(self, batch: CropBatch) -> tuple[Tensor, ...]:
        """Latents, mask, latents of the masked image, and the control images (n, 1, S, S)."""
        control = torch.stack([augmented_control(self.crops.rng, crop) for crop in batch.crops])
        return (*encode_crops(self.model, batch.images, batch.hidden), control.to(self.device))

    def loss(self, progress: float = 0.0) -> Tensor:
        count = self.settings.batch_size
        (latents, mask, masked, control), captions = self.ring.batch(count)
        with torch.no_grad():
            context = self.model.encode_text(with_dropout(captions, TEXT_DROPOUT, self.generator))
        steps = noisy_steps(count, int(self.model.scheduler.config.num_train_timesteps), self.generator)
        noise = torch.randn(latents.shape, generator=self.generator)
        denoise = ControlledDenoiser(self.model, self.controlnet, control)
        return denoising_loss(self.model, denoise, EncodedCrops(latents, mask, masked), context, steps, noise)

    def draw(self, file: Path) -> None:
        draw_inpainted(self.model, self.held_out, file, seed=self.settings.seed, control=ControlNet(self.controlnet))
        self.controlnet.train().requires_grad_(True)  # the transform froze it

    def write(self, folder: Path) -> None:
        """A folder that a ControlNet's ``source`` takes."""
        with without_progress_bars():
            self.controlnet.save_pretrained(folder, safe_serialization=True)


def noisy_steps(count: int, timesteps: int, generator: torch.Generator) -> Tensor:
    """(count,) random timesteps (1 - u^3) T with u uniform in [0, 1]."""
    return ((1 - torch.rand(count, generator=generator) ** 3) * timesteps).long().clamp_max(timesteps - 1)


def augmented_control(rng: np.random.RandomState, crop: Crop) -> Tensor:
    """The control of a crop as users may draw it.

    Canny or Scharr, with some blur, drawn at another resolution, sometimes without the edges inside the mask. A free shape is the
    outline of nothing when the whole crop is hidden, so it is left out there.

    Returns:
        (1, S, S) in [0, 1].
    """
    size = crop.image.shape[-1]
    outline = torch.zeros_like(crop.mask) if crop.is_whole and not crop.has_lesion else crop.mask
    scale = float(np.exp(rng.uniform(-0.5, 0.7)))
    drawn_at = round(size * scale) if rng.rand() < RESCALED_SHARE else size
    image = _resized((crop.image[None] + 1) / 2, drawn_at)
    mask = (_resized(outline[None], drawn_at) > 0.5).float()
    is_soft = rng.rand() < SCHARR_SHARE
    sigma_px = float(rng.uniform(0.5, 1.5) if is_soft else rng.uniform(1.0, 2.2))
    detect = partial(scharr if is_soft else canny, sigma_px=sigma_px)
    control = control_image(image, mask, detect, keep_inside=bool(rng.rand() >= ERASED_SHARE))
    return _resized(control, size)[0].clamp(0, 1)


def _resized(picture: Tensor, size: int) -> Tensor:
    if picture.shape[-1] == size:
        return picture
    resized: Tensor = F.interpolate(picture, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized
