"""How many slices go through a network at once, and what is done when they do not fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter

__all__ = ["batch_sizes", "in_batches"]

logger = logging.getLogger(__name__)

# On a CPU feature maps that outgrow its cache, and that the system hands out anew each time, cost more than wide calls save: at 256 px
# the embedded VAE takes 1.6 times as long a slice in calls of 16 as in calls of 2. Bytes of the largest maps, so measured for both.
LARGEST_CPU_BATCH = 16
UNET_CPU_BYTES, VAE_CPU_BYTES = 6 * 2**20, 12 * 2**20
LARGEST_UNET_BATCH, LARGEST_VAE_BATCH = 64, 8  # 8 decodes of 512 px fill a GPU already
FREE_SHARE = 0.8
VAE_MAPS = 3.0  # peak of a decode in full-size feature maps of block_out_channels[1]: 0.4 GB for SD at 512 px in bfloat16
UNET_MAPS = 26.0  # peak of a UNet call in feature maps of block_out_channels[0] at the latents' size: 68 MB for SD-1.5 in bfloat16


def in_batches(run: Callable[[slice], Tensor], count: int, batch_size: int) -> Tensor:
    """Run over consecutive slices of ``count`` items; a batch that does not fit into memory is halved and tried again."""
    done: list[Tensor] = []
    start = 0
    while start < count:
        stop = min(start + batch_size, count)
        try:
            done.append(run(slice(start, stop)))
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
        else:
            start = stop
            continue
        # only here is the failed call's memory free: within the clause its traceback holds the tensors
        batch_size = (stop - start) // 2
        logger.warning("out of memory: going on with %d slices a batch", batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return torch.cat(done)


def batch_sizes(model: Inpainter, side_px: int, guided: bool, asked: int | None) -> tuple[int, int]:
    """Slices in one UNet call and in one VAE call: as asked, else what fits into the free memory of the GPU or the cache of a CPU.

    The peak of memory is the VAE's decoder, not the UNet: the UNet runs wide, the VAE narrow.
    """
    if asked is not None:
        return asked, asked
    channels = getattr(model.vae.config, "block_out_channels", None) or model.vae.config.decoder_block_out_channels
    of_vae = side_px**2 * channels[min(1, len(channels) - 1)] * model.vae_dtype.itemsize
    of_unet = (side_px // model.factor) ** 2 * model.unet.config.block_out_channels[0] * model.dtype.itemsize * (1 + guided)
    if model.device.type != "cuda":
        return _within(UNET_CPU_BYTES / of_unet, LARGEST_CPU_BATCH), _within(VAE_CPU_BYTES / of_vae, LARGEST_CPU_BATCH)
    free = FREE_SHARE * (
        torch.cuda.mem_get_info(model.device)[0] + torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    )
    return _within(free / (UNET_MAPS * of_unet), LARGEST_UNET_BATCH), _within(free / (VAE_MAPS * of_vae), LARGEST_VAE_BATCH)


def _within(count: float, largest: int) -> int:
    return max(1, min(largest, int(count)))
