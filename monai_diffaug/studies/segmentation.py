"""The segmentation task of a downstream study: one MONAI UNet, trained for a fixed number of steps, scored image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.metrics import compute_hausdorff_distance
from monai.networks.nets import UNet
from torch import Tensor

from monai_diffaug.studies.masked_images import MaskedImage, cut_squares
from monai_diffaug.training.captions import LARGE_FRACTION, SMALL_FRACTION
from monai_diffaug.training.checkpoint import cosine_rate

__all__ = ["SIZES", "TaskSettings", "batch_of", "score_segmentation", "size_of", "train_segmentation"]

SIZES = ("small", "medium", "large")  # below 1.5 %, below 6 % of the image, above
# with two residual units and 1500 steps, 250 real images do clearly better than 40; otherwise a study of synthetic ones could not tell
CHANNELS = (16, 32, 64, 128, 128)
FALSE_ALARM_SHARE = 0.005  # of the image's area


@dataclass(frozen=True)
class TaskSettings:
    """Settings of the training, the same in every arm.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step.
        size_px: side of the network's input.
        synthetic_share: share of a batch that is synthetic, where there are synthetic images.
        rate: peak learning rate.
        compile: train through ``torch.compile``: faster, needs a C++ compiler.
    """

    steps: int = 1500
    batch_size: int = 8
    size_px: int = 96
    synthetic_share: float = 0.5
    rate: float = 1e-3
    compile: bool = False


def batch_of(
    rng: np.random.RandomState, real: Sequence[MaskedImage], synthetic: Sequence[MaskedImage], settings: TaskSettings
) -> tuple[Tensor, Tensor, list[MaskedImage]]:
    """Random images (B, C, s, s) in [-1, 1] and labels (B, 1, s, s) in {0, 1}, zoomed, turned, mirrored, with a random gamma.

    The same augmentation in all arms, also of the synthetic images.
    """
    n = settings.batch_size
    from_synthetic = rng.rand(n) < (settings.synthetic_share if synthetic else 0.0)
    chosen = [synthetic[rng.randint(len(synthetic))] if s else real[rng.randint(len(real))] for s in from_synthetic]
    stacked = [torch.cat([case.image / 255, case.mask]) for case in chosen]
    sizes = np.array([case.image.shape[-2:] for case in chosen])
    centres = (sizes - 1) / 2 + rng.uniform(-0.08, 0.08, (n, 2)) * sizes
    sides = rng.uniform(0.8, 1.05, n) * sizes.max(1)
    cut = cut_squares(stacked, centres, sides, settings.size_px, rng.uniform(-0.25, 0.25, n), rng.rand(n) < 0.5)
    gamma = torch.from_numpy(np.exp(rng.uniform(-0.3, 0.3, (n, 1, 1, 1)))).float()
    return cut[:, :-1].clamp(0, 1) ** gamma * 2 - 1, (cut[:, -1:] > 0.5).float(), chosen


def train_segmentation(real: Sequence[MaskedImage], synthetic: Sequence[MaskedImage], settings: TaskSettings, seed: int) -> Any:
    """A MONAI UNet trained with DiceCE, AdamW and a cosine rate; the global random state is left alone."""
    rng = np.random.RandomState(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(2, real[0].image.shape[0], 1, CHANNELS, (2,) * (len(CHANNELS) - 1), num_res_units=2, norm="batch")
    network.train()
    forward: Any = torch.compile(network) if settings.compile else network
    loss_of = DiceCELoss(sigmoid=True, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=1e-3)
    rate = cosine_rate(settings.rate, settings.rate / 100)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / settings.steps)
        images, labels, _ = batch_of(rng, real, synthetic, settings)
        loss = loss_of(forward(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def size_of(share: float) -> str:
    """The word for a lesion's share of its image."""
    return SIZES[0] if share < SMALL_FRACTION else SIZES[1] if share < LARGE_FRACTION else SIZES[2]


@torch.no_grad()
def score_segmentation(network: Any, test: Sequence[MaskedImage], settings: TaskSettings) -> list[dict[str, float | int | str]]:
    """One row per image, at its own size.

    With a lesion: "dice", "hd95" (pixels; an empty prediction counts as the image's diagonal), "fnr" (share of the lesion's pixels that
    are missed), "missed" (1 when all are), "size". On normal images: "false_alarm" (1 when more than 0.5 % is marked).
    """
    rows: list[dict[str, float | int | str]] = []
    for case in test:
        image = (case.image / 127.5 - 1)[None]
        logits = network(F.interpolate(image, (settings.size_px,) * 2, mode="bilinear", antialias=True, align_corners=False))
        prediction = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False) > 0
        truth = case.mask[None] > 0
        row: dict[str, float | int | str] = {"index": case.index, "group": case.group, "finding": case.finding}
        if truth.any():
            overlap = int((prediction & truth).sum())
            row["dice"] = 2 * overlap / int(prediction.sum() + truth.sum())
            row["hd95"] = _hd95(prediction, truth)
            row["fnr"] = 1 - overlap / int(truth.sum())
            row["missed"] = int(overlap == 0)
            row["size"] = size_of(float(truth.float().mean()))
        else:
            row["false_alarm"] = int(float(prediction.float().mean()) > FALSE_ALARM_SHARE)
        rows.append(row)
    return rows


def _hd95(prediction: Tensor, truth: Tensor) -> float:
    if not prediction.any():
        return float(np.hypot(*truth.shape[-2:]))
    return float(compute_hausdorff_distance(prediction.float(), truth.float(), include_background=True, percentile=95))
