"""A small classifier of lesion crops: one class per finding and one for normal tissue, trained on real crops alone."""

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

from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.masks.shapes import borrow_shape, place
from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.masked_images import MaskedImage, cut_squares, lesion_square, lesions_of, masked, tissue_of
from monai_diffaug.studies.study_images import TRAINING, StudyData, StudyInputError
from monai_diffaug.training.checkpoint import cosine_rate
from monai_diffaug.training.crops import blurred

__all__ = ["ClassifierSettings", "FindingCropSampler", "load_or_train", "predict", "train_classifier"]

logger = logging.getLogger(__name__)

CONTEXT_RANGE = (1.7, 2.4)  # around the 2.0 of the crops that are judged
MAX_TURN = 0.25  # radians
BLUR_SHARE = 0.5  # decoded images are softer than a scanner's; sharpness must not decide
RATE = 1e-3


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of the training.

    Attributes:
        findings: the classes; "normal tissue" comes last.
        steps: optimiser steps.
        batch_size: crops per step, the classes alike.
        size_px: side of a crop.
        seed: of weights and draws.
    """

    findings: tuple[str, ...]
    steps: int = 400
    batch_size: int = 16
    size_px: int = 64
    seed: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        return (*self.findings, NORMAL)


class FindingCropSampler:
    """Draws grey crops of real lesions, and of tissue in squares that hold no lesion.

    The mask is not shown, so the classifier judges the look of the tissue, not the outline.

    Args:
        data: one data set.
        settings: classes, size and seed.
        section: "training" or "validation".

    Raises:
        StudyInputError: the list lacks one of the findings.
    """

    def __init__(self, data: StudyData, settings: ClassifierSettings, section: str = TRAINING) -> None:
        self.settings = settings
        self.rng = np.random.RandomState(settings.seed)
        self.images = data.images(section)
        self.lesions: dict[str, list[MaskedImage]] = {}
        for lesion in lesions_of(self.images):
            self.lesions.setdefault(lesion.finding, []).append(lesion)
        missing = [name for name in settings.findings if name not in self.lesions]
        if missing:
            raise StudyInputError(f'{data.file} shows no {missing[0]} in the "{section}" list; the classifier needs each finding')
        self.outlines = [lesion.mask_hw for lesions in self.lesions.values() for lesion in lesions]
        self.tissue: dict[int, NDArray[np.bool_]] = {}

    def _normal(self) -> MaskedImage:
        """An outline on tissue whose square is free of lesions."""
        rng = self.rng
        while True:
            position = rng.randint(len(self.images))
            image = self.images[position]
            if position not in self.tissue:
                self.tissue[position] = tissue_of(image)
            outline = self.outlines[rng.randint(len(self.outlines))]
            mask = place(rng, borrow_shape(rng, outline, rng.uniform(0.6, 1.0)), self.tissue[position], tries=10)
            if mask is None or not mask.any():
                continue
            centre, side, _ = lesion_square(mask, CONTEXT_RANGE[1])
            top, left = np.maximum(centre - 0.55 * side, 0).astype(int)
            bottom, right = np.ceil(centre + 0.55 * side).astype(int)
            if not image.labelled[top:bottom, left:right].any():
                return masked(image, mask, NORMAL)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Crops (n, 1, s, s) in [-1, 1] and classes (n,), jittered, turned, mirrored, sometimes softened."""
        rng, names = self.rng, self.settings.classes
        classes = rng.permutation(np.arange(n) % len(names))
        pictures, centres, sides = [], [], []
        for index in classes:
            lesions = self.lesions.get(names[index])
            chosen = lesions[rng.randint(len(lesions))] if lesions else self._normal()
            centre, side, extent = lesion_square(chosen.mask_hw, rng.uniform(*CONTEXT_RANGE))
            slack = 0.25 * max(side - extent, 0) / 2
            pictures.append(chosen.image.float().mean(0, keepdim=True) / 255)
            centres.append(centre + rng.uniform(-slack, slack, 2))
            sides.append(side)
        angles, flips = rng.uniform(-MAX_TURN, MAX_TURN, n), rng.rand(n) < 0.5
        crops = cut_squares(pictures, np.stack(centres), sides, self.settings.size_px, angles, flips)
        for i in np.flatnonzero(rng.rand(n) < BLUR_SHARE):
            crops[i] = blurred(crops[i : i + 1], rng.uniform(0.4, 1.0))[0]
        gamma = torch.from_numpy(np.exp(rng.uniform(-0.3, 0.3, (n, 1, 1, 1)))).float()
        return crops.clamp(0, 1) ** gamma * 2 - 1, torch.from_numpy(classes)


def _network(classes: int) -> Any:
    return resnet18(spatial_dims=2, n_input_channels=1, num_classes=classes, conv1_t_stride=2)


def train_classifier(data: StudyData, settings: ClassifierSettings) -> Any:
    """A ResNet18 trained on crops of the training list; the global random state is left alone."""
    sampler = FindingCropSampler(data, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network: Any = _network(len(settings.classes))
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


def load_or_train(data: StudyData, settings: ClassifierSettings, file: Path | None) -> Any:
    """The classifier in ``file`` if it was trained with these settings on these data, else a new one, which is written there."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    note = {"settings": repr(settings), "data": data.title}
    if file is not None and file.is_file():
        with safe_open(file, framework="pt") as stored:
            known = stored.metadata()
        if known == note:
            network = _network(len(settings.classes))
            network.load_state_dict(load_file(file))
            return network.eval()
        logger.info("%s was trained with other settings: training again", file)
    network = train_classifier(data, settings)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, part, metadata=note)
    return network


@torch.no_grad()
def predict(network: Any, crops: Tensor, batch_size: int = 32) -> Tensor:
    """Probabilities (n, classes) for grey crops (n, 1, s, s) in [-1, 1]; the mean of the crop and its mirror image."""
    parts = [network(chunk).softmax(1) + network(chunk.flip(-1)).softmax(1) for chunk in crops.split(batch_size)]
    return torch.cat(parts) / 2
