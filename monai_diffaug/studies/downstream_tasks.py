"""The tasks of a downstream study: a MONAI UNet that segments, and a MONAI ResNet18 that tells one finding from the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.metrics import compute_hausdorff_distance
from monai.networks.nets import UNet, resnet18
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from monai_diffaug.studies.masked_images import MaskedImage, cut_squares
from monai_diffaug.training.captions import LARGE_FRACTION, SMALL_FRACTION
from monai_diffaug.training.checkpoint import cosine_rate

__all__ = ["SIZES", "TaskSettings", "accuracy", "auc", "batch_of", "f1", "fit", "score_classification", "score_segmentation", "size_of"]

SIZES = ("small", "medium", "large")  # below 1.5 %, below 6 % of the image, above
# with two residual units and 1500 steps, 250 real images do clearly better than 40; otherwise a study of synthetic ones could not tell
CHANNELS = (16, 32, 64, 128, 128)
CLASSIFICATION_SIZE_PX, CLASSIFICATION_RATE = 96, 5e-4
FALSE_ALARM_SHARE = 0.005  # of the image's area

Scores = list[dict[str, float | int | str]]
"""One row per image."""


@dataclass(frozen=True)
class TaskSettings:
    """Settings of the training, the same in every arm."""

    steps: int = 1500
    batch_size: int = 8
    size_px: int = 96  # side of the network's input
    synthetic_share: float = 0.5  # of a batch, where there are synthetic images
    rate: float = 1e-3  # peak learning rate
    compile: bool = False  # train through ``torch.compile``: faster, needs a C++ compiler


def fit(network: Any, loss_of: Callable[[Any], Tensor], steps: int, rate: float, weight_decay: float, *, compile: bool = False) -> Any:
    """Train a network with AdamW and a cosine rate; ``loss_of`` draws a batch and gives its loss."""
    network.train()
    forward: Any = torch.compile(network) if compile else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=weight_decay)
    rate_at = cosine_rate(rate, rate / 100)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / steps)
        loss = loss_of(forward)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return network.eval()


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


def _resized(case: MaskedImage, size_px: int) -> Tensor:
    """The image as the networks see it, (1, C, s, s) in [-1, 1]."""
    return F.interpolate((case.image / 127.5 - 1)[None], (size_px,) * 2, mode="bilinear", antialias=True, align_corners=False)


def train_segmentation(real: Sequence[MaskedImage], synthetic: Sequence[MaskedImage], settings: TaskSettings, seed: int) -> Any:
    """A MONAI UNet trained with DiceCE; the global random state is left alone."""
    rng, criterion = np.random.RandomState(seed), DiceCELoss(sigmoid=True, batch=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(2, real[0].image.shape[0], 1, CHANNELS, (2,) * (len(CHANNELS) - 1), num_res_units=2, norm="batch")

    def loss_of(forward: Any) -> Tensor:
        images, labels, _ = batch_of(rng, real, synthetic, settings)
        loss: Tensor = criterion(forward(images), labels)
        return loss

    return fit(network, loss_of, settings.steps, settings.rate, 1e-3, compile=settings.compile)


def size_of(share: float) -> str:
    """The word for a lesion's share of its image."""
    return SIZES[0] if share < SMALL_FRACTION else SIZES[1] if share < LARGE_FRACTION else SIZES[2]


@torch.no_grad()
def score_segmentation(network: Any, test: Sequence[MaskedImage], settings: TaskSettings) -> Scores:
    """Scores at each image's own size.

    With a lesion: "dice", "hd95" (pixels; an empty prediction counts as the image's diagonal), "fnr" (share of the lesion's pixels that
    are missed), "missed" (1 when all are), "size". On normal images: "false_alarm" (1 when more than 0.5 % is marked).
    """
    rows: Scores = []
    for case in test:
        logits = network(_resized(case, settings.size_px))
        prediction = F.interpolate(logits, case.image.shape[-2:], mode="bilinear", align_corners=False) > 0
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


def train_classification(
    real: Sequence[MaskedImage], synthetic: Sequence[MaskedImage], positive: str, settings: TaskSettings, seed: int
) -> Any:
    """ResNet18 on whole images with a lesion, for ``positive`` against the other findings; normal images are left out."""
    real, synthetic = [c for c in real if not c.is_normal], [c for c in synthetic if not c.is_normal]
    settings = replace(settings, size_px=min(settings.size_px, CLASSIFICATION_SIZE_PX))
    rng = np.random.RandomState(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = resnet18(spatial_dims=2, n_input_channels=real[0].image.shape[0], num_classes=1, conv1_t_stride=2)
    share = float(np.mean([c.finding == positive for c in real]))
    weight = torch.tensor((1 - share) / max(share, 1e-3))

    def loss_of(forward: Any) -> Tensor:
        images, _, cases = batch_of(rng, real, synthetic, settings)
        truth = torch.tensor([[float(c.finding == positive)] for c in cases])
        return F.binary_cross_entropy_with_logits(forward(images), truth, pos_weight=weight)

    return fit(network, loss_of, settings.steps, CLASSIFICATION_RATE, 1e-2, compile=settings.compile)


@torch.no_grad()
def score_classification(network: Any, test: Sequence[MaskedImage], positive: str, settings: TaskSettings) -> Scores:
    """Of each image with a lesion "probability" of ``positive``, and the truth as "target" 0 or 1."""
    rows: Scores = []
    for case in (c for c in test if not c.is_normal):
        logit = network(_resized(case, min(settings.size_px, CLASSIFICATION_SIZE_PX)))
        target = int(case.finding == positive)
        rows.append({"index": case.index, "group": case.group, "probability": float(logit.sigmoid()), "target": target})
    return rows


def auc(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """ROC AUC: the chance that a positive has a higher probability than a negative, ties half; nan when one class is missing."""
    p, t = np.asarray(probabilities, np.float64), np.asarray(targets) == 1
    if t.all() or not t.any():
        return float("nan")
    difference: NDArray[np.float64] = p[t][:, None] - p[~t][None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def accuracy(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Share of right answers at 0.5."""
    return float(((np.asarray(probabilities) > 0.5) == (np.asarray(targets) == 1)).mean())


def f1(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Harmonic mean of precision and recall of the positive class at 0.5; 0 without a true positive."""
    predicted, true = np.asarray(probabilities) > 0.5, np.asarray(targets) == 1
    return float(2 * (predicted & true).sum() / max(int(predicted.sum() + true.sum()), 1))
