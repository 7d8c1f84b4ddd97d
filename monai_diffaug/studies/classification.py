"""The classification task of a downstream study: MONAI's ResNet18 tells the findings apart; AUC, accuracy, F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import resnet18
from numpy.typing import ArrayLike, NDArray

from monai_diffaug.studies.masked_images import MaskedImage
from monai_diffaug.studies.segmentation import TaskSettings, batch_of
from monai_diffaug.training.checkpoint import cosine_rate

__all__ = ["accuracy", "auc", "f1", "score_classification", "train_classification"]

SIZE_PX = 96
RATE = 5e-4


def train_classification(
    real: Sequence[MaskedImage], synthetic: Sequence[MaskedImage], positive: str, settings: TaskSettings, seed: int
) -> Any:
    """ResNet18 on whole images with a lesion, for ``positive`` against the other findings; normal images are left out."""
    real, synthetic = [c for c in real if not c.is_normal], [c for c in synthetic if not c.is_normal]
    settings = replace(settings, size_px=min(settings.size_px, SIZE_PX), rate=RATE)
    rng = np.random.RandomState(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = resnet18(spatial_dims=2, n_input_channels=real[0].image.shape[0], num_classes=1, conv1_t_stride=2)
    network.train()
    forward: Any = torch.compile(network) if settings.compile else network
    share = float(np.mean([c.finding == positive for c in real]))
    weight = torch.tensor((1 - share) / max(share, 1e-3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=1e-2)
    rate = cosine_rate(settings.rate, settings.rate / 100)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / settings.steps)
        images, _, cases = batch_of(rng, real, synthetic, settings)
        truth = torch.tensor([[float(c.finding == positive)] for c in cases])
        loss = F.binary_cross_entropy_with_logits(forward(images), truth, pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def score_classification(
    network: Any, test: Sequence[MaskedImage], positive: str, settings: TaskSettings
) -> list[dict[str, float | int | str]]:
    """One row per image with a lesion: "probability" of ``positive``, and the truth as "target" 0 or 1."""
    size = min(settings.size_px, SIZE_PX)
    rows: list[dict[str, float | int | str]] = []
    for case in (c for c in test if not c.is_normal):
        image = (case.image / 127.5 - 1)[None]
        logit = network(F.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False))
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
