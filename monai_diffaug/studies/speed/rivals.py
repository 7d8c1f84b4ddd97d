"""What a user would write instead: loops around diffusers' inpainting pipeline, on the same modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.studies.speed.speed_settings import EditSettings
from monai_diffaug.studies.speed.timed_volumes import Volume

__all__ = ["Rival", "posterior_mode", "rival_arms"]

Rival = Callable[[], Tensor]
"""() -> the edited slices (D, 1, H, W) in grey values, the original's outside the mask."""


@contextmanager
def posterior_mode() -> Iterator[None]:
    """Let diffusers' pipeline take the mode of the VAE's posterior, as this package does, and not a sample of it.

    Nothing else keeps the arms from being equal; it costs the same time.
    """
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as module

    sampling = module.retrieve_latents
    module.retrieve_latents = lambda output, generator=None, sample_mode="argmax": output.latent_dist.mode()
    try:
        yield
    finally:
        module.retrieve_latents = sampling


def rival_arms(model: Inpainter, volume: Volume, settings: EditSettings) -> dict[str, Rival]:
    """The three rivals of one edit; call them within ``posterior_mode``.

    "a": one call of the pipeline for each slice, empty or not, with PIL images and the prompt as text.
    "b": one call for each slice that the mask touches, with tensors and with the prompt encoded beforehand.
    "c": one call for all slices that the mask touches, with tensors.
    """
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = StableDiffusionInpaintPipeline(
        model.vae,
        model.text_encoder,
        model.tokenizer,
        model.unet,
        model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    loops = _Loops(pipeline, model, volume, settings)
    return {"a": loops.every_slice_as_picture, "b": loops.touched_slices_as_tensors, "c": loops.one_batch}


class _Loops:
    def __init__(self, pipeline: Any, model: Inpainter, volume: Volume, settings: EditSettings) -> None:
        self.pipeline, self.volume, self.settings = pipeline, volume, settings
        height, width = volume.masks.shape[-2:]
        self.options: dict[str, Any] = {
            "height": height,
            "width": width,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "strength": 1.0,
        }
        with torch.no_grad():
            self.context = model.encode_text([settings.prompt])
            self.negative = model.encode_text([""])
        self.device = model.device

    def _generators(self, indices: list[int]) -> list[torch.Generator]:
        return slice_generators(self.settings.seed, indices)

    def every_slice_as_picture(self) -> Tensor:
        from PIL import Image

        result = []
        for index, (image, mask) in enumerate(zip(self.volume.slices, self.volume.masks, strict=True)):
            picture = Image.fromarray(image[0].to(torch.uint8).numpy()).convert("RGB")
            region = Image.fromarray((mask[0] * 255).to(torch.uint8).numpy())
            edited = self.pipeline(
                self.settings.prompt, image=picture, mask_image=region, generator=self._generators([index])[0], **self.options
            ).images[0]
            grey = torch.from_numpy(np.asarray(edited).astype(np.float32)).mean(-1)
            result.append(torch.where(mask > 0, grey[None], image))
        return torch.stack(result)

    def touched_slices_as_tensors(self) -> Tensor:
        result = self.volume.slices.clone()
        for index in self.volume.indices:
            result[index] = self._by_tensors([index])[0]
        return result

    def one_batch(self) -> Tensor:
        result = self.volume.slices.clone()
        if self.volume.indices:
            result[self.volume.indices] = self._by_tensors(self.volume.indices)
        return result

    def _by_tensors(self, indices: list[int]) -> Tensor:
        image, mask = self.volume.slices[indices], self.volume.masks[indices]
        count = len(indices)
        edited = self.pipeline(
            image=(image / 255).expand(-1, 3, -1, -1).to(self.device),
            mask_image=mask.to(self.device),
            prompt_embeds=self.context.expand(count, -1, -1),
            negative_prompt_embeds=self.negative.expand(count, -1, -1),
            generator=self._generators(indices),
            output_type="pt",
            **self.options,
        ).images
        grey = edited.float().mean(1, keepdim=True).cpu() * 255
        return torch.where(mask > 0, grey, image)
