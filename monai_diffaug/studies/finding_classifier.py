"""A small judge of what a crop of breast ultrasound shows: benign mass, malignant mass or normal tissue, trained on real crops alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import resnet18
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.masks.shapes import borrow_shape, largest_component, place
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.regions import MIN_AREA_PX
from monai_diffaug.training.checkpoint import cosine_rate
from monai_diffaug.training.crops import crop_squares
from monai_diffaug.training.embedded.datasets import Sample, load_samples
from monai_diffaug.training.embedded.train_validator import blurred, lesion_square

__all__ = ["CLASSES", "ClassifierSettings", "FindingCropSampler", "load_or_train", "predict", "train_classifier"]

logger = logging.getLogger(__name__)

CLASSES = ("benign mass", "malignant mass", NORMAL)
CONTEXT_RANGE = (1.7, 2.4)  # around the 2.0 at which it is asked
MAX_TURN = 0.25  # radians
BLUR_SHARE = 0.5  # a decoded image is softer than a scanner's; sharpness shall not decide
RATE = 1e-3


@dataclass(frozen=True)
class ClassifierSettings:
    """How it is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: crops in one, the classes alike.
        size_px: side of a crop.
        source: name of the data set.
        seed: of weights and draws.
    """

    steps: int = 400
    batch_size: int = 16
    size_px: int = 64
    source: str = "breast_ultrasound"
    seed: int = 0


class FindingCropSampler:
    """Draws grey crops of real lesions, and of tissue of normal and other images in a square that holds no lesion.

    The mask is not shown: what is judged is the look of the tissue, not the outline.
    """

    def __init__(self, split: str, settings: ClassifierSettings) -> None:
        self.settings = settings
        self.rng = np.random.RandomState(settings.seed)
        self.samples = load_samples(settings.source, split)
        self.lesions: dict[str, list[tuple[Sample, NDArray[np.bool_]]]] = {}
        for sample in self.samples:
            for finding, mask in sample.masks():
                if mask.sum() >= MIN_AREA_PX:
                    self.lesions.setdefault(finding, []).append((sample, largest_component(mask)))
        missing = [name for name in CLASSES[:-1] if name not in self.lesions]
        if missing:
            raise ValueError(f"{settings.source} ({split}) shows no {missing[0]}; the classifier needs {', '.join(CLASSES)}")
        self.outlines = [mask for members in self.lesions.values() for _, mask in members]
        self.tissue_of: dict[int, NDArray[np.bool_]] = {}

    def _normal(self) -> tuple[Sample, NDArray[np.bool_]]:
        """An outline on tissue whose square is free of lesions."""
        rng = self.rng
        while True:
            sample = self.samples[rng.randint(len(self.samples))]
            if sample.index not in self.tissue_of:
                self.tissue_of[sample.index] = normal_tissue(sample.image.max(-1) / 255, sample.label)
            outline = self.outlines[rng.randint(len(self.outlines))]
            mask = place(rng, borrow_shape(rng, outline, rng.uniform(0.6, 1.0)), self.tissue_of[sample.index], tries=10)
            if mask is None or not mask.any():
                continue
            centre, side, _ = lesion_square(mask, CONTEXT_RANGE[1])
            top, left = np.maximum(centre - 0.55 * side, 0).astype(int)
            bottom, right = np.ceil(centre + 0.55 * side).astype(int)
            if not sample.label[top:bottom, left:right].any():
                return sample, mask

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Crops (n, 1, s, s) in [-1, 1] and classes (n,), jittered, turned, mirrored, sometimes softened."""
        rng = self.rng
        classes = rng.permutation(np.arange(n) % len(CLASSES))
        pixels, centres, sides = [], [], []
        for index in classes:
            members = self.lesions.get(CLASSES[index])
            sample, mask = members[rng.randint(len(members))] if members else self._normal()
            centre, side, extent = lesion_square(mask, rng.uniform(*CONTEXT_RANGE))
            slack = 0.25 * max(side - extent, 0) / 2
            pixels.append(sample.image.mean(-1, dtype=np.float32) / 255)
            centres.append(centre + rng.uniform(-slack, slack, 2))
            sides.append(side)
        crops = crop_squares(
            torch.from_numpy(np.stack(pixels))[:, None],
            torch.from_numpy(np.stack(centres)).float(),
            torch.tensor(sides),
            self.settings.size_px,
            torch.from_numpy(rng.uniform(-MAX_TURN, MAX_TURN, n)).float(),
            torch.from_numpy(rng.rand(n) < 0.5),
        )
        for i in np.flatnonzero(rng.rand(n) < BLUR_SHARE):
            crops[i] = blurred(crops[i : i + 1], rng.uniform(0.4, 1.0))[0]
        gamma = torch.from_numpy(np.exp(rng.uniform(-0.3, 0.3, (n, 1, 1, 1)))).float()
        return crops.clamp(0, 1) ** gamma * 2 - 1, torch.from_numpy(classes)


def _network() -> Any:
    return resnet18(spatial_dims=2, n_input_channels=1, num_classes=len(CLASSES), conv1_t_stride=2)


def train_classifier(settings: ClassifierSettings) -> Any:
    """A ResNet18 trained on crops of the training split; the global random state is left alone."""
    sampler = FindingCropSampler("train", settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network: Any = _network()
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    rate = cosine_rate(RATE, RATE / 100)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / settings.steps)
        crops, classes = sampler.draw(settings.batch_size)
        loss = F.cross_entropy(network(crops), classes, label_smoothing=0.05)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if (step + 1) % 100 == 0:
            logger.info("classifier step %d loss %.3f", step + 1, float(loss.detach()))
    return network.eval()


def load_or_train(settings: ClassifierSettings, file: Path | None) -> Any:
    """The classifier in ``file`` when it was trained with these settings, else a new one, which is kept there."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    note = {"settings": repr(settings)}
    if file is not None and file.is_file():
        with safe_open(file, framework="pt") as stored:
            known = stored.metadata()
        if known == note:
            network = _network()
            network.load_state_dict(load_file(file))
            return network.eval()
        logger.info("%s was trained with other settings: training anew", file)
    network = train_classifier(settings)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file.with_suffix(".part"), metadata=note)
        file.with_suffix(".part").replace(file)
    return network


@torch.no_grad()
def predict(network: Any, crops: Tensor, batch_size: int = 32) -> Tensor:
    """Probabilities (n, 3) of ``CLASSES`` for grey crops (n, 1, s, s) in [-1, 1]; the mean of the crop and its mirror image."""
    parts = [network(chunk).softmax(1) + network(chunk.flip(-1)).softmax(1) for chunk in crops.split(batch_size)]
    return torch.cat(parts) / 2
