"""The forwards that an edit cannot do without, on tensors that are there already: the lower bound of its time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from monai_diffaug.edit.slice_batches import batch_sizes
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed.speed_settings import EditSettings

__all__ = ["bare_edit"]


def bare_edit(model: Inpainter, count: int, size_px: int, settings: EditSettings) -> Callable[[], None]:
    """One VAE encode a slice, the UNet's calls and one VAE decode a slice, in the batches and the type of the edit.

    Args:
        model: whose modules are called.
        count: slices that are repainted.
        size_px: their side.
        settings: of the edit.
    """
    wide, narrow = batch_sizes(model, size_px, settings.guided, settings.batch_size)
    side, channels = size_px // model.factor, model.unet.config.in_channels
    with torch.no_grad():
        context = model.encode_text(["a lesion"])
    rows = 2 * count if settings.guided else count

    generator = torch.Generator().manual_seed(0)

    def resident(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.device, model.dtype)

    pictures = resident(count, 3, size_px, size_px)
    latents = resident(rows, channels, side, side)
    results = resident(count, model.vae.config.latent_channels, side, side)
    states = context.expand(rows, -1, -1).contiguous()
    timestep = torch.tensor(500, device=model.device)
    wide_rows = 2 * wide if settings.guided else wide

    @torch.no_grad()
    def run() -> None:
        for picture in pictures.split(narrow):
            model.vae.encode(picture)
        for some, text in zip(latents.split(wide_rows), states.split(wide_rows), strict=True):
            for _ in range(settings.steps):
                model.unet(some, timestep, encoder_hidden_states=text, return_dict=False)
        for result in results.split(narrow):
            model.vae.decode(result, return_dict=False)

    return run
