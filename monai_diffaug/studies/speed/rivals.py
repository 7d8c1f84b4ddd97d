"""The arms that this package is compared with: loops around diffusers' inpainting pipeline, and the bare forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.edit.slice_batches import batch_sizes
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.studies.speed.timed_edits import EditSettings, Volume

__all__ = ["Rival", "bare_edit", "posterior_mode", "rival_arms"]

Rival = Callable[[], Tensor]
"""() -> the edited slices (D, 1, H, W) in grey values, equal to the original outside the mask."""


@contextmanager
def posterior_mode() -> Iterator[None]:
    """Let diffusers' pipeline use the mode of the VAE's posterior, as this package does, instead of a sample.

    This is the only difference of the arms; it has no effect on the time.
    """
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as module

    original = module.retrieve_latents
    module.retrieve_latents = lambda output, generator=None, sample_mode="argmax": output.latent_dist.mode()
    try:
        yield
    finally:
        module.retrieve_latents = original


def rival_arms(model: Inpainter, volume: Volume, settings: EditSettings, names: str = "abc") -> dict[str, Rival]:
    """The rivals of one edit; call them within ``posterior_mode``.

    "a": one call of the pipeline per slice, with or without a mask, with PIL images and the prompt as text.
    "b": one call per slice with a mask, with tensors and the prompt encoded beforehand.
    "c": one call for all slices with a mask, with tensors.
    """
    from diffusers import StableDiffusionInpaintPipeline
    from PIL import Image

    pipeline: Any = StableDiffusionInpaintPipeline(
        model.vae, model.text_encoder, model.tokenizer, model.unet, model.scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    height, width = volume.masks.shape[-2:]
    options: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "strength": 1.0,
    }
    with torch.no_grad():
        context, negative = model.encode_text([settings.prompt]), model.encode_text([""])

    def by_tensors(indices: list[int]) -> Tensor:
        image, mask = volume.slices[indices], volume.masks[indices]
        edited = pipeline(
            image=(image / 255).expand(-1, 3, -1, -1).to(model.device),
            mask_image=mask.to(model.device),
            prompt_embeds=context.expand(len(indices), -1, -1),
            negative_prompt_embeds=negative.expand(len(indices), -1, -1),
            generator=slice_generators(settings.seed, indices),
            output_type="pt",
            **options,
        ).images
        grey = edited.float().mean(1, keepdim=True).cpu() * 255
        return torch.where(mask > 0, grey, image)

    def all_slices_as_pictures() -> Tensor:
        result = []
        for index, (image, mask) in enumerate(zip(volume.slices, volume.masks, strict=True)):
            picture = Image.fromarray(image[0].to(torch.uint8).numpy()).convert("RGB")
            region = Image.fromarray((mask[0] * 255).to(torch.uint8).numpy())
            (generator,) = slice_generators(settings.seed, [index])
            edited = pipeline(settings.prompt, image=picture, mask_image=region, generator=generator, **options).images[0]
            grey = torch.from_numpy(np.asarray(edited).astype(np.float32)).mean(-1)
            result.append(torch.where(mask > 0, grey[None], image))
        return torch.stack(result)

    def masked_slices_one_by_one() -> Tensor:
        result = volume.slices.clone()
        for index in volume.indices:
            result[index] = by_tensors([index])[0]
        return result

    def masked_slices_as_batch() -> Tensor:
        result = volume.slices.clone()
        if volume.indices:
            result[volume.indices] = by_tensors(volume.indices)
        return result

    arms = {"a": all_slices_as_pictures, "b": masked_slices_one_by_one, "c": masked_slices_as_batch}
    return {name: arms[name] for name in names}


def bare_edit(model: Inpainter, count: int, size_px: int, settings: EditSettings) -> Callable[[], None]:
    """The forward passes that an edit of ``count`` slices of side ``size_px`` needs, on existing tensors: the lower limit of its time.

    VAE encode, UNet calls and VAE decode have the batches and the type of the edit.
    """
    wide, narrow = batch_sizes(model, size_px, settings.guided, settings.batch_size)
    side, channels, branches = size_px // model.factor, model.unet.config.in_channels, 2 if settings.guided else 1
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.device, model.dtype)

    images = random(count, 3, size_px, size_px)
    latents = random(branches * count, channels, side, side)
    results = random(count, model.vae.config.latent_channels, side, side)
    with torch.no_grad():
        states = model.encode_text(["a lesion"]).expand(branches * count, -1, -1).contiguous()
    timestep = torch.tensor(500, device=model.device)

    @torch.no_grad()
    def run() -> None:
        for batch in images.split(narrow):
            model.vae.encode(batch)
        for batch, text in zip(latents.split(branches * wide), states.split(branches * wide), strict=True):
            for _ in range(settings.steps):
                model.unet(batch, timestep, encoder_hidden_states=text, return_dict=False)
        for batch in results.split(narrow):
            model.vae.decode(batch, return_dict=False)

    return run
