"""Random training crops with a control image: what a ControlNet learns from, encoded once in chunks on disk.

``python -m monai_diffaug.training.embedded.control_bank --vae runs/vae/vae --out runs/controlnet/bank --chunks 4``
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.masks.edges import canny, control_image, scharr
from monai_diffaug.masks.shapes import largest_component
from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.crops import captioned_crop, grown
from monai_diffaug.training.embedded.command_line import parsed
from monai_diffaug.training.embedded.latent_bank import MAX_DILATION_PX, MaskedCropSampler
from monai_diffaug.training.embedded.train_inpaint import LatentBank

__all__ = ["ControlBank", "ControlCrop", "ControlCropSampler", "augmented_control", "build_control_chunk", "build_missing_chunks"]

logger = logging.getLogger(__name__)

WHOLE_SHARE = 0.4  # crops in which everything is hidden: the whole-slice mode
WHOLE_SIDE_PX = (110, 256)
SCHARR_SHARE = 0.25
ERASED_SHARE = 0.2
RESCALED_SHARE = 0.4


class ControlCrop(NamedTuple):
    """One training example, each picture ``size`` pixels wide.

    Attributes:
        image: (3, size, size) in [-1, 1].
        mask: (1, size, size) in {0, 1}, what the UNet does not see.
        outline: (1, size, size) in {0, 1}, the mask whose outline the control shows.
        text: the caption.
        finding: what is to be seen under the mask.
    """

    image: Tensor
    mask: Tensor
    outline: Tensor
    text: str
    finding: str


class ControlCropSampler(MaskedCropSampler):
    """Draws crops for a ControlNet: a lesion or a free shape hidden as for the inpainter, or the whole crop hidden.

    Args:
        split: "train" or "validation".
        seed: of everything that is drawn.
        sources: names of the data sets; default all.
        whole_share: share of crops in which everything is hidden.
        size_px: side of a crop in pixels, the size the model was trained at.
    """

    def __init__(
        self, split: str, seed: int, sources: tuple[str, ...] | None = None, *, whole_share: float = WHOLE_SHARE, size_px: int = 128
    ) -> None:
        super().__init__(split, seed, sources)
        self.whole_share = whole_share
        self.size_px = size_px

    def draw_control_crop(self) -> ControlCrop:
        """One example."""
        sample, mask, finding = self.draw()
        whole = self.rng.rand() < self.whole_share
        side_px = self.rng.uniform(*WHOLE_SIDE_PX) if whole else None
        crop = captioned_crop(self.rng, sample, largest_component(mask), finding, self.size_px, side_px=side_px)
        radius_px = self.rng.randint(MAX_DILATION_PX + 1)
        hidden = torch.ones_like(crop.mask) if whole else grown(crop.mask, radius_px)
        # a free shape is the outline of nothing when the whole crop is hidden
        is_lesion = finding != NORMAL and bool(sample.label.any())
        drawn = torch.zeros_like(crop.mask) if whole and not is_lesion else crop.mask
        return ControlCrop(crop.image, hidden, drawn, crop.text, finding)


def augmented_control(rng: np.random.RandomState, crop: ControlCrop) -> Tensor:
    """The control of a crop as users may draw it: Canny or Scharr, some blur, drawn at another resolution, sometimes with the
    edges inside the mask left out.

    Returns:
        (1, size, size) in [0, 1].
    """
    size = crop.image.shape[-1]
    scale = float(np.exp(rng.uniform(-0.5, 0.7)))
    drawn_at = round(size * scale) if rng.rand() < RESCALED_SHARE else size
    image = _resized((crop.image[None] + 1) / 2, drawn_at)
    mask = (_resized(crop.outline[None], drawn_at) > 0.5).float()
    soft = rng.rand() < SCHARR_SHARE
    sigma_px = float(rng.uniform(0.5, 1.5) if soft else rng.uniform(1.0, 2.2))
    detect = partial(scharr if soft else canny, sigma_px=sigma_px)
    control = control_image(image, mask, detect, keep_inside=bool(rng.rand() >= ERASED_SHARE))
    return _resized(control, size)[0].clamp(0, 1)


def _resized(picture: Tensor, size: int) -> Tensor:
    if picture.shape[-1] == size:
        return picture
    resized: Tensor = F.interpolate(picture, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized


@torch.no_grad()
def build_control_chunk(
    vae: Any, draw: Callable[[], ControlCrop], count: int, seed: int, batch_size: int = 16
) -> dict[str, Tensor | list[str]]:
    """Encode ``count`` crops.

    Args:
        vae: diffusers AutoencoderKL.
        draw: gives one crop a call.
        count: crops.
        seed: of the controls' variation.
        batch_size: crops in one call of the VAE.

    Returns:
        "latents" and "masked" (n, 4, h, w) scaled float16, "mask" (n, 1, h, w) float16, "control" (n, 1, size, size) uint8 in
        [0, 255], "captions".
    """
    rng = np.random.RandomState(seed)
    scale, factor = vae.config.scaling_factor, 2 ** (len(vae.config.block_out_channels) - 1)
    chunk: dict[str, list[Tensor]] = {"latents": [], "masked": [], "mask": [], "control": []}
    captions: list[str] = []
    for start in range(0, count, batch_size):
        crops = [draw() for _ in range(min(batch_size, count - start))]
        image, mask = torch.stack([c.image for c in crops]), torch.stack([c.mask for c in crops])
        both = torch.cat([image, image * (mask < 0.5)]).contiguous(memory_format=torch.channels_last)
        latents, masked = (vae.encode(both).latent_dist.mode() * scale).half().chunk(2)
        chunk["latents"].append(latents)
        chunk["masked"].append(masked)
        chunk["mask"].append(F.max_pool2d(mask, factor).half())
        chunk["control"].append(torch.stack([(augmented_control(rng, c) * 255).round().to(torch.uint8) for c in crops]))
        captions += [c.text for c in crops]
    return {**{name: torch.cat(parts) for name, parts in chunk.items()}, "captions": captions}


def build_missing_chunks(vae: Any, folder: Path, chunks: int, chunk_size: int, size_px: int = 128) -> None:
    """Write ``train-000.pt`` and so on where they are missing.

    Args:
        vae: diffusers AutoencoderKL, the one of the inpainter that shall be steered.
        folder: where to.
        chunks: files.
        chunk_size: crops in each.
        size_px: side of a crop in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vae = vae.to(memory_format=torch.channels_last)  # faster on a CPU
    for index in range(chunks):
        target = folder / f"train-{index:03d}.pt"
        if target.is_file():
            continue
        sampler = ControlCropSampler("train", seed=5000 + index, size_px=size_px)
        torch.save(build_control_chunk(vae, sampler.draw_control_crop, chunk_size, seed=index), target.with_suffix(".part"))
        target.with_suffix(".part").replace(target)
        logger.info("%s: %d crops", target, chunk_size)


class ControlBank(LatentBank):
    """A ``LatentBank`` whose chunks hold the control image too."""

    def batch_with_control(self, size: int, text_dropout: float) -> tuple[Tensor, Tensor, Tensor, Tensor, list[str]]:
        """(latents, mask, masked latents, control in [0, 1], captions) of ``size`` random crops, float32."""
        picks = torch.randint(len(self.captions), (size,))
        latents, mask, masked, control = (self.tensors[name][picks].float() for name in ("latents", "mask", "masked", "control"))
        texts = ["" if torch.rand(()) < text_dropout else self.captions[int(i)] for i in picks]
        return latents, mask, masked, control / 255, texts


def main() -> None:
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/vae"))
    parser.add_argument("--out", type=Path, default=Path("runs/controlnet/bank"))
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--chunk-size", type=int, default=800)
    args = parsed(parser)
    build_missing_chunks(AutoencoderKL.from_pretrained(args.vae).eval(), args.out, args.chunks, args.chunk_size)


if __name__ == "__main__":
    main()
