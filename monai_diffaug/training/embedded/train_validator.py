"""Train the embedded validator: one-step segmentation of lesions in crops, on the frozen VAE's latents of their masks.

``python -m monai_diffaug.training.embedded.train_validator --out runs/validator --vae runs/vae/vae --minutes 28 --threads 1``

Resumes what ``--out`` holds; ``--model tiny`` starts from the embedded weights. Seven crops in ten show a lesion, on the scales at which
the inpainter works; the rest show normal tissue, half of it with an outline blurred or filled with other tissue, so that a seam alone is
no lesion.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.masks.shapes import borrow_shape, largest_component, place, random_blob
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.validator import (
    NUM_TRAIN_TIMESTEPS,
    TINY_CONFIG,
    LatentSegmenter,
    LatentValidator,
    load_validator,
    mask_latents,
    save_validator,
)
from monai_diffaug.training.checkpoint import Clock, Ema, cosine_rate, load_state, save_state
from monai_diffaug.training.crops import crop_squares
from monai_diffaug.training.embedded.command_line import parsed
from monai_diffaug.training.embedded.datasets import SOURCES, Sample, load_samples, names_without

__all__ = ["LesionCropSampler", "LesionCrops", "latent_validator", "lesion_square", "train", "training_loss"]

logger = logging.getLogger(__name__)

FRESH_VAE = Path("runs/vae/vae")  # as monai_diffaug.training.embedded.train_vae writes it
SIZE_PX = 128
BREAST_SHARE = 0.5
PEAK_RATE = 1e-3
NORMAL_SHARE = 0.3
COUNTERFEIT_SHARE = 0.5
BLUR_SHARE = 0.35  # what the inpainter paints is softer than what a scanner records
CONTEXT_RANGE = (1.4, 2.6)
MIN_SIDE_PX = 32
MIN_AREA_PX = 20
LAST_STEP_SHARE = 0.75  # of the samples train the one timestep that inference uses
DICE_WEIGHT = 1.0
Z0_WEIGHT = 1.0  # of |z0 - z0hat| beside |eps - eps_th|


class LesionCrops(NamedTuple):
    """Images (N, 3, SIZE_PX, SIZE_PX) in [-1, 1] and masks (N, 1, SIZE_PX, SIZE_PX) in {0, 1}, empty on normal tissue."""

    images: Tensor
    masks: Tensor


def lesion_square(mask: NDArray[np.bool_], context: float) -> tuple[NDArray[np.float64], float, int]:
    """Centre (y, x), side and slack-free extent in pixels of the square around a mask: ``context`` times its longer side."""
    ys, xs = np.nonzero(mask)
    extent = int(max(np.ptp(ys), np.ptp(xs))) + 1
    side = float(np.clip(extent * context, MIN_SIDE_PX, 256))
    return np.array([(ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2]), side, extent


class LesionCropSampler:
    """Draws lesions under their own masks and normal tissue with empty masks.

    Args:
        split: "train" or "validation".
        seed: of all draws.
        sources: names in ``SOURCES``; default all.
        normal_share: share of the crops with normal tissue.
        counterfeit_share: share of those with an outline blurred or filled with other tissue.
        breast_share: of the draws are breast ultrasound; of the rest all data sets, breast ultrasound too, have like shares.
    """

    def __init__(
        self,
        split: str,
        seed: int,
        sources: tuple[str, ...] | None = None,
        normal_share: float = NORMAL_SHARE,
        counterfeit_share: float = COUNTERFEIT_SHARE,
        breast_share: float = BREAST_SHARE,
    ) -> None:
        self.rng = np.random.RandomState(seed)
        self.normal_share = normal_share
        self.counterfeit_share = counterfeit_share
        self.breast_share = breast_share
        chosen = {s.name: load_samples(s.name, split) for s in SOURCES if sources is None or s.name in sources}
        self.found = {name: [s for s in samples if s.label.any()] for name, samples in chosen.items()}
        self.found = {name: samples for name, samples in self.found.items() if samples}
        self.healthy = {name: [s for s in samples if s.image_finding in ("", "no finding")] for name, samples in chosen.items()}
        self.tissue_of: dict[tuple[str, int], NDArray[np.bool_]] = {}
        self.outlines = [m for samples in self.found.values() for s in samples for _, m in s.masks() if m.sum() > 60]

    def _pick(self, table: dict[str, list[Sample]]) -> Sample:
        names = list(table)
        name = names[self.rng.randint(len(names))]
        if "breast_ultrasound" in table and self.rng.rand() < self.breast_share:
            name = "breast_ultrasound"
        return table[name][self.rng.randint(len(table[name]))]

    def _lesion(self) -> tuple[Sample, NDArray[np.bool_], NDArray[np.float64], float]:
        while True:
            sample = self._pick(self.found)
            masks = [mask for _, mask in sample.masks()]
            mask = largest_component(masks[self.rng.randint(len(masks))])
            if mask.sum() >= MIN_AREA_PX:
                centre, side, extent = lesion_square(mask, self.rng.uniform(*CONTEXT_RANGE))
                slack = max(side - extent, 0) / 2 * 0.5
                return sample, mask, centre + self.rng.uniform(-slack, slack, 2), side

    def _tissue(self, sample: Sample) -> NDArray[np.bool_]:
        """Where a lesion could be: not the letterbox, not on or beside a finding; kept for the next draw."""
        key = (sample.source.name, sample.index)
        if key not in self.tissue_of:
            self.tissue_of[key] = normal_tissue(sample.image.max(-1) / 255, sample.label)
        return self.tissue_of[key]

    def _normal(self) -> tuple[Sample, NDArray[np.bool_], NDArray[np.float64], float]:
        """A square free of findings, and an outline within it where a lesion could be."""
        while True:
            sample = self._pick(self.healthy)
            if self.rng.rand() < 0.6:
                outline = self.outlines[self.rng.randint(len(self.outlines))]
                shape = borrow_shape(self.rng, outline, self.rng.uniform(0.4, 1.1))
            else:
                shape = random_blob(self.rng, self.rng.randint(10, 100))
            mask = place(self.rng, shape, self._tissue(sample), tries=10)
            if mask is None or not mask.any():
                continue
            centre, side, _ = lesion_square(mask, self.rng.uniform(*CONTEXT_RANGE))
            top, left = np.maximum(centre - 0.6 * side, 0).astype(int)
            bottom, right = np.ceil(centre + 0.6 * side).astype(int)
            if not sample.label[top:bottom, left:right].any():
                return sample, mask, centre, side

    def _counterfeit(self, image: Tensor, outline: Tensor) -> Tensor:
        """Normal tissue (3, s, s) with a soft outline (1, s, s) filled with itself, blurred, moved or a little brighter or darker."""
        rng = self.rng
        other = image
        kind = rng.randint(3)
        if kind == 0:
            other = blurred(image[None], rng.uniform(1.0, 3.0))[0]
        elif kind == 1:
            other = torch.roll(image, (int(rng.randint(-24, 25)), int(rng.randint(-24, 25))), (1, 2))
        if kind == 2 or rng.rand() < 0.3:
            other = other + rng.uniform(-0.06, 0.06)
        soft = blurred(outline[None], rng.uniform(0.7, 2.0))[0]
        return image * (1 - soft) + other * soft

    def draw(self, n: int) -> LesionCrops:
        """``n`` crops, jittered, turned, mirrored, with a random gamma and sometimes softened."""
        rng = self.rng
        normal = rng.rand(n) < self.normal_share
        drawn = [self._normal() if empty else self._lesion() for empty in normal]
        stacked = np.stack([np.concatenate([s.image.astype(np.float32) / 255, m[..., None]], -1) for s, m, _, _ in drawn])
        crops = crop_squares(
            torch.from_numpy(stacked).permute(0, 3, 1, 2).float(),
            torch.from_numpy(np.stack([centre for _, _, centre, _ in drawn])).float(),
            torch.tensor([side for *_, side in drawn]),
            SIZE_PX,
            torch.from_numpy(rng.uniform(-0.35, 0.35, n)).float(),
            torch.from_numpy(rng.rand(n) < 0.5),
        )
        images, masks = crops[:, :3].clone(), (crops[:, 3:] > 0.5).float()
        for i in range(n):
            if normal[i]:
                if rng.rand() < self.counterfeit_share:
                    images[i] = self._counterfeit(images[i], masks[i])
                masks[i] = 0
            if rng.rand() < BLUR_SHARE:
                images[i] = blurred(images[i : i + 1], rng.uniform(0.4, 1.3))[0]
        gamma = torch.from_numpy(np.exp(rng.uniform(-0.3, 0.3, (n, 1, 1, 1)))).float()
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, (n, 1, 1, 1))).float()
        return LesionCrops((images.clamp(0, 1) ** gamma * gain).clamp(0, 1) * 2 - 1, masks)


def blurred(images: Tensor, sigma_px: float) -> Tensor:
    """Images (N, C, h, w) smoothed by a Gaussian cut at 3 sigma, borders repeated."""
    radius = max(1, round(3 * sigma_px))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma_px) ** 2)
    taps = (taps / taps.sum()).to(images)
    n, c, h, w = images.shape
    flat = F.pad(images.reshape(n * c, 1, h, w), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(flat, taps[None, None, None]), taps[None, None, :, None]).reshape(n, c, h, w)


@torch.no_grad()
def fit_probe(vae: Any, sampler: LesionCropSampler, n: int = 96) -> tuple[Tensor, Tensor]:
    """A 3x3 convolution (weight (1, C, 3, 3), bias (1,)) that reads the mask, -1 to 1 on the latent grid, from its latents.

    Least squares; it stands in for the decoder in the loss, which costs as much as the whole step.
    """
    masks = torch.cat([sampler.draw(16).masks for _ in range(n // 16)])
    latents = torch.cat([mask_latents(vae, chunk) for chunk in masks.split(16)])
    target = F.adaptive_avg_pool2d(masks, (latents.shape[-2], latents.shape[-1])) * 2 - 1
    columns = F.unfold(latents, 3, padding=1).transpose(1, 2).flatten(0, 1)
    columns = torch.cat([columns, torch.ones(len(columns), 1)], 1).double()
    gram = columns.T @ columns + 1e-3 * torch.eye(columns.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, columns.T @ target.reshape(-1, 1).double()).float()[:, 0]
    return solution[:-1].reshape(1, latents.shape[1], 3, 3), solution[-1:]


def soft_dice_and_entropy(read: Tensor, target: Tensor) -> Tensor:
    """Soft Dice + binary cross-entropy of a read-out (N, 1, h, w), -1 to 1, against masks (N, 1, h, w) in [0, 1]; a scalar."""
    logits = 4 * read  # +-1 is 98 % sure
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 8) / (probability.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 8)
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, target)


def training_loss(
    segmenter: LatentSegmenter, z0: Tensor, crops: LesionCrops, probe: tuple[Tensor, Tensor], generator: torch.Generator
) -> Tensor:
    """|z0 - z0hat| (x0 form) or |eps - eps_th| + 1.0 |z0 - z0hat| (SDSeg), plus Dice and entropy of the mask read from z0hat."""
    n = len(z0)
    uniform = torch.randint(NUM_TRAIN_TIMESTEPS, (n,), generator=generator)
    last = torch.rand(n, generator=generator) < LAST_STEP_SHARE
    timesteps = torch.where(last, NUM_TRAIN_TIMESTEPS - 1, uniform).to(z0.device)
    noise = torch.randn(z0.shape, generator=generator).to(z0)
    z_t = segmenter.add_noise(z0, noise, timesteps)
    prediction = segmenter(crops.images, z_t, timesteps)
    z0hat = segmenter.z0_of(prediction, z_t, timesteps)
    loss = Z0_WEIGHT * F.l1_loss(z0hat, z0)
    if segmenter.prediction_type == "epsilon":
        loss = loss + F.l1_loss(prediction, noise)
    weight, bias = probe
    read = F.conv2d(z0hat, weight.to(z0hat), bias.to(z0hat), padding=1)
    return loss + DICE_WEIGHT * soft_dice_and_entropy(read, F.adaptive_avg_pool2d(crops.masks, (read.shape[-2], read.shape[-1])))


def latent_validator(model: str) -> LatentValidator:
    """The validator of a source of ``load_validator``, on the CPU, if it is one that can be trained here.

    Raises:
        ModelSourceError: nothing loadable under ``model``.
        ValueError: ``model`` is no latent validator.
    """
    validator = load_validator(ModelSpec("validator", model))
    if not isinstance(validator, LatentValidator):
        raise ValueError(f"{model!r} is no latent validator; give 'tiny' or a folder that this recipe wrote")
    return validator


def start(model: str | None, prediction_type: str) -> tuple[LatentSegmenter, Any]:
    """The network that is trained, and the VAE whose latents it predicts: those of ``model`` (a source of ``load_validator``).

    Without a model the network is fresh and the VAE None.

    Raises:
        ModelSourceError: nothing loadable under ``model``.
        ValueError: ``model`` is no latent validator.
    """
    if model is None:
        return LatentSegmenter({**TINY_CONFIG, "prediction_type": prediction_type}), None
    validator = latent_validator(model)
    return validator.segmenter.train().requires_grad_(True), validator.vae


def train(
    out: Path,
    vae_folder: Path | None,
    minutes: float,
    batch_size: int = 8,
    prediction_type: str = "sample",
    seed: int = 0,
    left_out: Collection[str] = (),
    *,
    model: str | None = None,
    breast_share: float = BREAST_SHARE,
    peak_rate: float = PEAK_RATE,
) -> LatentSegmenter:
    """Train for ``minutes`` of running time (resumes what ``out`` holds) without the data sets ``left_out``, write ``out/validator``.

    Args:
        out, minutes, batch_size, seed, left_out: of the run.
        vae_folder: of the VAE whose latents are predicted; None takes that of the given model.
        prediction_type: of fresh weights; a given model keeps its own.
        model: weights to start from, a source of ``load_validator``; None starts afresh.
        breast_share: see ``LesionCropSampler``.
        peak_rate: learning rate at the start; it falls to a hundredth.

    Returns the averaged network.

    Raises:
        ModelSourceError: nothing loadable under ``model``.
        ValueError: ``model`` is no latent validator, or there is neither a model nor a VAE.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae: Any = None if vae_folder is None else AutoencoderKL.from_pretrained(vae_folder)
    segmenter, own_vae = start(model, prediction_type)
    vae = vae or own_vae
    if vae is None:
        raise ValueError("fresh weights need a VAE whose latents they predict: give its folder")
    segmenter = segmenter.to(memory_format=torch.channels_last)
    vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    ema = Ema(segmenter, 0.997)
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    rate = cosine_rate(peak_rate, peak_rate / 100)
    parts = {"segmenter": segmenter, "ema": ema, "optimizer": optimizer}
    state = out / "validator.ckpt"
    done = load_state(state, parts)
    sources = names_without(left_out)
    sampler = LesionCropSampler("train", seed + int(1000 * done), sources, breast_share=breast_share)
    generator = torch.Generator().manual_seed(seed + int(1000 * done))
    probe = fit_probe(vae, LesionCropSampler("train", seed, sources))
    clock, step, recent = Clock(minutes, done), 0, 0.0
    while (progress := clock.progress()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress)
        crops = sampler.draw(batch_size)
        crops = LesionCrops(crops.images.contiguous(memory_format=torch.channels_last), crops.masks)
        with torch.no_grad():
            z0 = mask_latents(vae, crops.masks)
        loss = training_loss(segmenter, z0, crops, probe, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(segmenter.parameters(), 1.0)
        optimizer.step()
        ema.update(segmenter)
        step += 1
        recent = 0.98 * recent + 0.02 * loss.item()
        if step % 50 == 0:
            logger.info("validator %.1f %% step %d loss %.4f", 100 * progress, step, recent / (1 - 0.98**step))
        if step % 250 == 0:
            save_state(state, parts, progress)
            save_validator(cast(LatentSegmenter, ema.module), out / "validator")
    save_state(state, parts, 1.0)
    save_validator(cast(LatentSegmenter, ema.module), out / "validator")
    return cast(LatentSegmenter, ema.module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/validator"))
    parser.add_argument("--vae", type=Path, help=f"default that of --model, without one {FRESH_VAE}")
    parser.add_argument("--minutes", type=float, default=28)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--model", help="weights to start from, e.g. tiny; default fresh ones")
    parser.add_argument("--breast-share", type=float, default=BREAST_SHARE, help="share of the draws; default %(default)s")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="peak learning rate; default %(default)s")
    parser.add_argument("--prediction-type", choices=("sample", "epsilon"), default="sample")
    parser.add_argument("--export", type=Path, default=None, help="also write the float16 weights to this folder")
    parser.add_argument("--without", nargs="+", default=(), metavar="DATA_SET", help="data sets that the model must not see")
    args = parsed(parser)
    try:
        segmenter = train(
            args.out,
            args.vae or (None if args.model else FRESH_VAE),
            args.minutes,
            args.batch_size,
            args.prediction_type,
            left_out=args.without,
            model=args.model,
            breast_share=args.breast_share,
            peak_rate=args.rate,
        )
    except (ModelSourceError, ValueError) as error:
        parser.error(str(error))
    if args.export is not None:
        save_validator(segmenter, args.export)


if __name__ == "__main__":
    main()
