"""Train a ControlNet for edges on the user's images, beside a frozen inpainter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffaug.masks.edges import control_image
from monai_diffaug.models.controlnet import build_controlnet
from monai_diffaug.models.progress_bars import without_progress_bars
from monai_diffaug.training.embedded.train_controlnet import PEAK_RATE, TEXT_DROPOUT, control_loss, noisy_steps
from monai_diffaug.training.frozen_inpainter import frozen_inpainter
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.model_folder import replace_parts
from monai_diffaug.training.run_settings import FineTuneSettings
from monai_diffaug.training.sample_pictures import draw_inpainted, lesions_to_show
from monai_diffaug.training.slice_crops import SliceCropSampler

__all__ = ["ControlNetRecipe"]

WHOLE_SHARE = 0.4  # crops in which everything is hidden: EMIT-Diff's whole-slice mode


class ControlNetRecipe:
    """Trains a ControlNet that starts as a copy of the inpainter's UNet encoder with zero outputs; the inpainter stays as it is.

    Args:
        settings: ``model`` is the inpainter that the ControlNet is for.
        slices: to train on.
        held_out: shown in the sample pictures; the training slices when empty.

    Raises:
        ModelSourceError: nothing loadable under ``settings.model``.
        TrainingInputError: LoRA or the text encoder is asked for, or the model predicts the clean sample.
    """

    name = "controlnet"
    rate = PEAK_RATE

    def __init__(self, settings: FineTuneSettings, slices: Sequence[LabelledSlice], held_out: Sequence[LabelledSlice] = ()) -> None:
        self.settings = settings
        self.model = frozen_inpainter(settings, "a ControlNet")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = build_controlnet(self.model.unet, self.model.factor)
        self.controlnet: Any = network.to(self.model.device).train().requires_grad_(True)
        self.modules: Mapping[str, nn.Module] = {"controlnet": self.controlnet}
        self.slices, self.held_out = list(slices), lesions_to_show(held_out, slices)

    def reseed(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.sampler = SliceCropSampler(self.slices, self.model.size_px, seed)

    def loss(self, progress: float = 0.0) -> Tensor:
        count = self.settings.batch_size
        crops = [self.sampler.draw() for _ in range(count)]
        images = torch.stack([crop.image for crop in crops])
        outlines = torch.stack([crop.mask for crop in crops])
        whole = (torch.rand(count, generator=self.generator) < WHOLE_SHARE)[:, None, None, None]
        hidden = torch.where(whole, torch.ones_like(outlines), outlines)
        control = control_image((images + 1) / 2, outlines)
        dropped = torch.rand(count, generator=self.generator) < TEXT_DROPOUT
        captions = ["" if bool(drop) else crop.caption for drop, crop in zip(dropped, crops, strict=True)]
        with torch.no_grad():
            latents = self.model.encode(torch.cat([images, images * (hidden < 0.5)]))
        steps = noisy_steps(count, len(self.model.scheduler.alphas_cumprod), self.generator).to(latents.device)
        noise = torch.randn(latents[:count].shape, generator=self.generator).to(latents)
        batch = (latents[:count], self.model.latent_mask(hidden), latents[count:], control.to(latents), captions)
        return control_loss(self.model, self.controlnet, batch, steps, noise)

    def draw(self, file: Path) -> None:
        draw_inpainted(self.model, self.held_out, file, seed=self.settings.seed, controlnet=self.controlnet)
        self.controlnet.train().requires_grad_(True)  # the transform froze it

    def write(self, folder: Path) -> None:
        """A folder that ``controlnet=`` takes."""
        part = folder / "training" / "part"
        with without_progress_bars():
            self.controlnet.save_pretrained(part, safe_serialization=True)
        replace_parts(part, folder)
