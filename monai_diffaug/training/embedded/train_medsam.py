"""Train the embedded MedSAM: segment_anything's own classes at 256 px, prompted by jittered boxes.

``python -m monai_diffaug.training.embedded.train_medsam --out runs/medsam --minutes 45 --threads 1`` trains (resumes what ``--out``
holds) and writes ``config.json`` and ``model.safetensors`` (float16) to ``out/medsam``.

``--model tiny --keep-encoder`` trains the decoder of a model further and leaves its image encoder bit for bit as it is, so that what was
trained on its features (a semantic controller) stays valid.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.masks.boxes import Box, box_around, connected_components
from monai_diffaug.models.medsam import TINY_CONFIG, build_sam, load_medsam, prompt_with_boxes, save_sam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.checkpoint import Clock, Ema, cosine_rate, load_state, save_state
from monai_diffaug.training.embedded.command_line import parsed
from monai_diffaug.training.embedded.datasets import Sample, load_samples, names_without

logger = logging.getLogger(__name__)

SIZE_PX = int(TINY_CONFIG["image_size"])
PROMPTS_PER_IMAGE = 2  # the encoder costs as much as five prompts, so each embedding is used more than once
BREAST_SHARE = 0.4
SPECK_PX = 25  # MedSAM drops parts below 100 px on slices of 512, which is 25 on 256
DECOY_SHARE = 0.15  # of the images: one box holds nothing labelled, and the IoU head learns to say so


@dataclass
class Batch:
    """Images with P boxes each, and the mask that belongs in each box.

    Attributes:
        images: (N, 3, S, S) in [0, 1].
        targets: (N, P, S, S) in {0, 1}.
        boxes: (N, P, 4) xyxy in pixels.
        real: (N, P) bool; False where the box is a decoy, whose target does not count.
    """

    images: Tensor
    targets: Tensor
    boxes: Tensor
    real: Tensor


def tight_box(mask: NDArray[Any]) -> Box:
    """(x0, y0, x1, y1) of the non-zero pixels."""
    return box_around(torch.from_numpy(mask))


def instances(sample: Sample) -> list[NDArray[np.bool_]]:
    """Each connected part of each finding, as MedSAM's own preprocessing splits them; specks are left out."""
    parts = [part for _, mask in sample.masks() for part in connected_components(torch.from_numpy(mask))]
    return [part.numpy() for part in parts if part.sum() >= SPECK_PX]


class PromptSampler:
    """Draws images with boxes around their findings: 40 % breast ultrasound, the other sources equally often.

    Args:
        split: "train" or "validation".
        seed: of all draws.
        left_out: names of data sets that are not drawn from; without breast ultrasound all others are equally frequent.
        breast_share: share of the draws that show breast ultrasound.
    """

    def __init__(self, split: str, seed: int, left_out: Collection[str] = (), *, breast_share: float = BREAST_SHARE) -> None:
        self.rng = np.random.RandomState(seed % 2**32)
        self.sources: list[list[tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]]] = []
        is_breast = []
        for name in names_without(left_out):
            pairs = [(s.image, instances(s)) for s in load_samples(name, split)]
            pairs = [p for p in pairs if p[1]]
            if pairs:
                self.sources.append(pairs)
                is_breast.append(name == "breast_ultrasound")
        breast_share = breast_share if any(is_breast) else 0.0
        rest = (1 - breast_share) / is_breast.count(False)
        self.shares = np.array([breast_share if breast else rest for breast in is_breast])

    def _theta(self, mask: NDArray[np.bool_]) -> Tensor:
        """(2, 3) sampling matrix: a square that holds the finding, rotated, mirrored, at a scale seen at inference."""
        rng = self.rng
        x0, y0, x1, y1 = tight_box(mask)
        height, width = mask.shape
        extent = max(x1 - x0, y1 - y0) * 1.15 + 8
        side = max(
            width * (rng.uniform(0.9, 1.1) if rng.rand() < 0.5 else np.exp(rng.uniform(np.log(0.4), np.log(1.1)))),
            min(extent, width),
        )
        centre = []
        for low, high, length in ((x0, x1, width), (y0, y1, height)):
            slack = max(side - (high - low) - 8, 0) / 2
            middle = (low + high) / 2
            inside = sorted((side / 2 - 10, length - side / 2 + 10))
            first, last = max(inside[0], middle - slack), min(inside[1], middle + slack)
            centre.append(rng.uniform(first, last) if first < last else np.clip(middle, *inside))
        angle, sign = (rng.uniform(-0.4, 0.4) if rng.rand() < 0.6 else 0.0), (-1.0 if rng.rand() < 0.5 else 1.0)
        cos, sin, half = np.cos(angle), np.sin(angle), side / width
        shift = [(2 * c + 1) / width - 1 for c in centre]
        stretch = np.exp(rng.uniform(-0.12, 0.12))
        return torch.tensor(
            [[sign * cos * half * stretch, -sin * half, shift[0]], [sign * sin * half * stretch, cos * half, shift[1]]],
            dtype=torch.float32,
        )

    def _colour(self, image: Tensor) -> Tensor:
        """Gamma, contrast, inversion, noise, greying of one (3, S, S) image, then min-max to [0, 1] as at inference."""
        rng = self.rng
        if rng.rand() < 0.2:
            image = image.mean(0, keepdim=True).expand(3, -1, -1)
        image = image.clamp(0, 1) ** float(np.exp(rng.uniform(-0.4, 0.4)))
        image = (image * rng.uniform(0.8, 1.25) + rng.uniform(-0.08, 0.08)).clamp(0, 1)
        if rng.rand() < 0.1:
            image = 1 - image
        if rng.rand() < 0.3:
            noise = torch.from_numpy(rng.standard_normal((1, *image.shape[1:])).astype(np.float32))
            image = image + noise * rng.uniform(0.01, 0.05)
        low, high = image.amin(), image.amax()
        return (image - low) / (high - low).clamp_min(1e-8)

    def _jitter(self, box: tuple[float, ...]) -> list[float]:
        """MedSAM's enlargement (0-20 px at 1024) and a little shrinking or enlarging relative to the box."""
        rng, (x0, y0, x1, y1) = self.rng, box
        reach = 20 * SIZE_PX / 1024
        grow = rng.uniform(-1.0, reach + 0.5, 4) + rng.uniform(-0.04, 0.04, 4) * np.array([x1 - x0, y1 - y0] * 2)
        low_x, low_y = min(x0 - grow[0], (x0 + x1) / 2 - 1), min(y0 - grow[1], (y0 + y1) / 2 - 1)
        high_x, high_y = max(x1 + grow[2], (x0 + x1) / 2 + 1), max(y1 + grow[3], (y0 + y1) / 2 + 1)
        return [float(v) for v in np.clip([low_x, low_y, high_x, high_y], 0, SIZE_PX)]

    def draw(self, n: int) -> Batch:
        rng = self.rng
        images: list[Tensor] = []
        targets, boxes, real = [], [], []
        while len(images) < n:
            pairs = self.sources[rng.choice(len(self.sources), p=self.shares)]
            image, masks = pairs[rng.randint(len(pairs))]
            chosen = [masks[i] for i in rng.permutation(len(masks))[:PROMPTS_PER_IMAGE]]
            anchor, union = chosen[0], np.any(masks, axis=0)
            stack = torch.from_numpy(np.stack([*(image.transpose(2, 0, 1) / np.float32(255)), union, *chosen]).astype(np.float32))
            grid = F.affine_grid(self._theta(anchor)[None], [1, 1, SIZE_PX, SIZE_PX], align_corners=False)
            stack = F.grid_sample(stack[None], grid, padding_mode="border", align_corners=False)[0]
            labelled = (stack[3] > 0.5).numpy()
            found = [m for m in (stack[4:] > 0.5).numpy() if m.sum() >= 12]
            if not found:
                continue
            images.append(self._colour(stack[:3]))
            order = [found[i] for i in rng.permutation(len(found))]
            order = [order[i % len(order)] for i in range(PROMPTS_PER_IMAGE)]
            box_list, is_real = [self._jitter(tight_box(m)) for m in order], [True] * PROMPTS_PER_IMAGE
            if rng.rand() < DECOY_SHARE:
                side = rng.uniform(10, 90, 2)
                corner = rng.uniform(0, SIZE_PX - side)
                x0, y0, x1, y1 = (*corner, *(corner + side))
                if not labelled[int(y0) : int(y1), int(x0) : int(x1)].any():
                    box_list[-1], is_real[-1] = [x0, y0, x1, y1], False
            targets.append(torch.from_numpy(np.stack(order)).float())
            boxes.append(box_list)
            real.append(is_real)
        return Batch(torch.stack(images), torch.stack(targets), torch.tensor(boxes, dtype=torch.float32), torch.tensor(real))


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice + binary cross-entropy of (P, 1, h, w) logits against (P, 1, S, S) masks, one number a prompt (P,)."""
    targets = F.adaptive_avg_pool2d(targets, (logits.shape[-2], logits.shape[-1]))
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2, 3)) + targets.sum((1, 2, 3)) + 1)
    # normalised by the target's size: otherwise a finding of 30 px has no weight in 16 384
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum((1, 2, 3))
    return dice + 0.5 * entropy / (targets.sum((1, 2, 3)) + 16)


@torch.no_grad()
def intersection_over_union(logits: Tensor, targets: Tensor) -> Tensor:
    """(P,) overlap of the thresholded masks, what the IoU head is to predict."""
    predicted, truth = logits > 0, F.adaptive_avg_pool2d(targets, (logits.shape[-2], logits.shape[-1])) > 0.5
    return (predicted & truth).sum((1, 2, 3)) / (predicted | truth).sum((1, 2, 3)).clamp_min(1)


def batch_loss(sam: Any, batch: Batch, *, keep_encoder: bool = False) -> tuple[Tensor, Tensor]:
    """Mean loss of a batch and the (N * P,) overlaps of its real prompts; no gradient reaches an encoder that is kept."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not keep_encoder):
        embeddings = sam.image_encoder(batch.images)
    positions = sam.prompt_encoder.get_dense_pe()
    losses, overlaps = [], []
    for embedding, targets, boxes, real in zip(embeddings, batch.targets, batch.boxes, batch.real, strict=True):
        sparse, dense = prompt_with_boxes(sam, boxes, TINY_CONFIG["box_as_mask"])
        logits, predicted_iou = sam.mask_decoder(embedding[None], positions, sparse, dense, multimask_output=False)
        overlap = torch.where(real, intersection_over_union(logits, targets[:, None]), 0.0)
        losses.append(mask_loss(logits, targets[:, None])[real].sum() + ((predicted_iou[:, 0] - overlap) ** 2).sum())
        overlaps.append(overlap[real])
    return torch.stack(losses).sum() / batch.real.numel(), torch.cat(overlaps)


def start(model: str | None, keep_encoder: bool) -> Any:
    """The networks that are trained: fresh ones, or those of ``model`` (a source of ``load_medsam`` of the embedded architecture).

    Raises:
        ValueError: an encoder can only be kept where a model is given, or the model has another input size.
    """
    if model is None:
        if keep_encoder:
            raise ValueError("keep_encoder leaves the image encoder of a given model as it is: give the model too, e.g. 'tiny'")
        return build_sam(TINY_CONFIG).requires_grad_(True)
    sam = load_medsam(ModelSpec("medsam", model)).sam
    if int(sam.image_encoder.img_size) != SIZE_PX:
        raise ValueError(
            f"{model!r} works on {sam.image_encoder.img_size} px, this recipe on {SIZE_PX}; use monai-diffaug train medsam for it"
        )
    sam.requires_grad_(True)
    sam.image_encoder.requires_grad_(not keep_encoder)
    return sam


def train(
    out: Path,
    minutes: float,
    batch_size: int = 4,
    seed: int = 0,
    left_out: Collection[str] = (),
    *,
    model: str | None = None,
    keep_encoder: bool = False,
    breast_share: float = BREAST_SHARE,
    peak_rate: float = 1e-3,
) -> Any:
    """Train for ``minutes`` of wall time (resumes what ``out`` holds) without the data sets ``left_out``, write ``out/medsam``.

    Args:
        out, minutes, batch_size, seed, left_out: of the run.
        model: weights to start from; None starts afresh.
        keep_encoder: train everything but the image encoder.
        breast_share: share of the draws that show breast ultrasound.
        peak_rate: learning rate at the start; it falls to a hundredth.

    Returns the average.
    """
    torch.manual_seed(seed)
    sam = start(model, keep_encoder)
    ema = Ema(sam, 0.998)
    named = [(n, p) for n, p in sam.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if p.ndim > 1 and "pos" not in n and "embed" not in n]
    kept = [p for n, p in named if not (p.ndim > 1 and "pos" not in n and "embed" not in n)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": kept, "weight_decay": 0.0}], lr=peak_rate, betas=(0.9, 0.98)
    )
    rate = cosine_rate(peak_rate, peak_rate / 100)
    parts = {"sam": sam, "ema": ema, "optimizer": optimizer}
    state = out / "medsam.ckpt"
    done = load_state(state, parts)
    sampler = PromptSampler("train", seed + int(1000 * done), left_out, breast_share=breast_share)
    clock, step, recent = Clock(minutes, done), 0, 0.0
    while (progress := clock.progress()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress)
        loss, overlap = batch_loss(sam, sampler.draw(batch_size), keep_encoder=keep_encoder)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_((p for _, p in named), 1.0)
        optimizer.step()
        ema.update(sam)
        step += 1
        recent = 0.98 * recent + 0.02 * float(overlap.mean())
        if step % 50 == 0:
            logger.info(
                "medsam %.1f %% step %d loss %.3f mean IoU(train) %.3f",
                100 * progress,
                step,
                loss.item(),
                recent / (1 - 0.98**step),
            )
        if step % 250 == 0:
            save_state(state, parts, progress)
    save_state(state, parts, 1.0)
    average: Any = ema.module
    if keep_encoder:  # averaging turns -0 into 0, and whoever has noted the encoder's bytes would take it for another one
        average.image_encoder.load_state_dict(sam.image_encoder.state_dict())
    save_sam(average, TINY_CONFIG, out / "medsam")
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/medsam"))
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--without", nargs="+", default=(), metavar="DATA_SET", help="data sets that the model must not see")
    parser.add_argument("--model", help="weights to start from, e.g. tiny; default fresh ones")
    parser.add_argument("--keep-encoder", action="store_true", help="leave that model's image encoder as it is")
    parser.add_argument("--breast-share", type=float, default=BREAST_SHARE, help="share of the draws; default %(default)s")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate; default %(default)s")
    args = parsed(parser)
    try:
        train(
            args.out,
            args.minutes,
            args.batch_size,
            left_out=args.without,
            model=args.model,
            keep_encoder=args.keep_encoder,
            breast_share=args.breast_share,
            peak_rate=args.rate,
        )
    except (ModelSourceError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
