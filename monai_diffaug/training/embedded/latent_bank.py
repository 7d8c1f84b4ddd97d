"""Encode random training crops once: latents of image and masked image, the mask, the caption, in chunks on disk.

``python -m monai_diffaug.training.embedded.latent_bank --vae runs/vae/vae --out runs/bank --chunks 8``
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from monai_diffaug.masks.shapes import borrow_shape, largest_component, place, random_blob
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.crops import captioned_crop, grown
from monai_diffaug.training.embedded.command_line import parsed
from monai_diffaug.training.embedded.datasets import SOURCES, Sample, load_samples, names_without

logger = logging.getLogger(__name__)

SIZE_PX = 128
ULTRASOUND_SHARE = 0.45
NORMAL_SHARE = 0.3
MAX_DILATION_PX = 3


class Draw(NamedTuple):
    """One image with the region to hide and what is to be seen in it."""

    sample: Sample
    mask: NDArray[np.bool_]
    finding: str


class MaskedCropSampler:
    """Draws (crop, mask, caption): lesions under their own mask, normal tissue under borrowed shapes and blobs."""

    def __init__(self, split: str, seed: int, sources: tuple[str, ...] | None = None) -> None:
        self.rng = np.random.RandomState(seed)
        self.samples = {s.name: load_samples(s.name, split) for s in SOURCES if sources is None or s.name in sources}
        self.outlines = [mask for samples in self.samples.values() for s in samples for _, mask in s.masks() if mask.sum() > 60]

    def _source(self) -> str:
        if "breast_ultrasound" in self.samples and self.rng.rand() < ULTRASOUND_SHARE:
            return "breast_ultrasound"
        names = list(self.samples)
        return names[self.rng.randint(len(names))]

    def tissue(self, sample: Sample) -> NDArray[np.bool_]:
        """Where normal tissue can be repainted: not the letterbox, not near a finding."""
        return normal_tissue(sample.image.max(-1) / 255, sample.label)

    def _free_mask(self, sample: Sample) -> NDArray[np.bool_] | None:
        if self.rng.rand() < 0.6:
            outline = self.outlines[self.rng.randint(len(self.outlines))]
            shape = borrow_shape(self.rng, outline, self.rng.uniform(0.5, 1.2))
        else:
            shape = random_blob(self.rng, self.rng.randint(10, 110))
        return place(self.rng, shape, self.tissue(sample))

    def draw(self) -> Draw:
        """One image with a mask and the finding under it."""
        while True:
            samples = self.samples[self._source()]
            sample = samples[self.rng.randint(len(samples))]
            findings = [(finding, mask) for finding, mask in sample.masks() if mask.sum() > 12]
            if findings and self.rng.rand() > NORMAL_SHARE:
                finding, mask = findings[self.rng.randint(len(findings))]
                return Draw(sample, mask, finding)
            free = self._free_mask(sample)
            if free is not None:
                healthy = sample.image_finding in ("", "no finding")
                return Draw(sample, free, NORMAL if healthy else sample.image_finding)

    def draw_crop(self) -> tuple[torch.Tensor, torch.Tensor, str]:
        """One training example.

        Returns:
            image (3, SIZE_PX, SIZE_PX) in [-1, 1], mask (1, SIZE_PX, SIZE_PX) in {0, 1}, caption.
        """
        sample, mask, finding = self.draw()
        crop = captioned_crop(self.rng, sample, largest_component(mask), finding, SIZE_PX)
        return crop.image, grown(crop.mask, self.rng.randint(MAX_DILATION_PX + 1)), crop.text


@torch.no_grad()
def build_chunk(vae: AutoencoderKL, sampler: MaskedCropSampler, count: int) -> dict[str, torch.Tensor | list[str]]:
    """Latents of ``count`` crops, float16: "latents" and "masked" (n, 4, h, w) scaled, "mask" (n, 1, h, w), "captions"."""
    scale = vae.config.scaling_factor
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    chunk: dict[str, list[torch.Tensor]] = {"latents": [], "masked": [], "mask": []}
    captions: list[str] = []
    for start in range(0, count, 16):
        images, masks, texts = zip(*(sampler.draw_crop() for _ in range(min(16, count - start))), strict=True)
        image, mask = torch.stack(images), torch.stack(masks)
        both = torch.cat([image, image * (mask < 0.5)]).contiguous(memory_format=torch.channels_last)
        latents, masked = (vae.encode(both).latent_dist.mode() * scale).half().chunk(2)
        chunk["latents"].append(latents)
        chunk["masked"].append(masked)
        chunk["mask"].append(F.max_pool2d(mask, factor).half())
        captions += texts
    return {**{name: torch.cat(parts) for name, parts in chunk.items()}, "captions": captions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/vae"))
    parser.add_argument("--out", type=Path, default=Path("runs/bank"))
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--chunk-size", type=int, default=1600)
    parser.add_argument("--split", default="train")
    parser.add_argument("--without", nargs="+", default=(), metavar="DATA_SET", help="data sets that the model must not see")
    args = parsed(parser)
    vae = AutoencoderKL.from_pretrained(args.vae).eval().to(memory_format=torch.channels_last)
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(args.chunks):
        target = args.out / f"{args.split}-{index:03d}.pt"
        if target.is_file():
            continue
        chunk = build_chunk(vae, MaskedCropSampler(args.split, seed=1000 + index, sources=names_without(args.without)), args.chunk_size)
        torch.save(chunk, target.with_suffix(".part"))
        target.with_suffix(".part").replace(target)
        logger.info("%s: %d crops", target, args.chunk_size)


if __name__ == "__main__":
    main()
