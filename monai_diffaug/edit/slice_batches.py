"""Number of slices per call of a network; batches that do not fit into memory are halved."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter

__all__ = ["batch_sizes", "in_batches"]

logger = logging.getLogger(__name__)

# On a CPU, feature maps larger than its cache cost more than wide calls save, because the system allocates them again for each call: at
# 256 px the embedded VAE takes 1.6 times as long per slice in calls of 16 as in calls of 2. Measured bytes of the largest maps:
LARGEST_CPU_BATCH = 16
UNET_CPU_BYTES, VAE_CPU_BYTES = 6 * 2**20, 12 * 2**20
LARGEST_UNET_BATCH, LARGEST_VAE_BATCH = 64, 8  # 8 decodes of 512 px already use a whole GPU
FREE_SHARE = 0.8
VAE_MAPS = 3.0  # peak of a decode in full-size feature maps of block_out_channels[1]: 0.4 GB for SD at 512 px in bfloat16
UNET_MAPS = 26.0  # peak of a UNet call in feature maps of block_out_channels[0] at the latents' size: 68 MB for SD-1.5 in bfloat16


def in_batches(run: Callable[[slice], Tensor], count: int, batch_size: int) -> Tensor:
    """Run over consecutive batches of ``count`` items; a batch that does not fit into memory is halved and tried again.

    >>> in_batches(lambda part: torch.arange(5)[part] * 2, 5, 2).tolist()
    [0, 2, 4, 6, 8]
    """
    results: list[Tensor] = []
    start = 0
    while start < count:
        stop = min(start + batch_size, count)
        try:
            results.append(run(slice(start, stop)))
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
        else:
            start = stop
            continue
        # outside the except clause: inside it the traceback still references the tensors of the failed call
        batch_size = (stop - start) // 2
        logger.warning("out of memory: continuing with %d slices per batch", batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return torch.cat(results)


def batch_sizes(model: Inpainter, side_px: int, guided: bool, batch_size: int | None) -> tuple[int, int]:
    """Slices per UNet call and per VAE call: ``batch_size``, else what fits into the free memory of the GPU or the cache of a CPU.

    The VAE's decoder needs more memory per slice than the UNet, so its batches are smaller.
    """
    if batch_size is not None:
        return batch_size, batch_size
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
