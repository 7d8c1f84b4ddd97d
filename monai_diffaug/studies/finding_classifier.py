"""A small classifier of lesion crops: one class per finding and one for normal tissue, trained on real crops alone."""

from __future__ import annotations

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
from monai_diffaug.studies.downstream_tasks import fit
from monai_diffaug.studies.masked_images import MaskedImage, cut_squares, lesion_square, lesions_of, masked, tissue_of
from monai_diffaug.studies.study_images import TRAINING, StudyData, StudyInputError
from monai_diffaug.training.crops import blurred

__all__ = ["ClassifierSettings", "FindingCropSampler", "load_or_train", "predict", "train_classifier"]

CONTEXT_RANGE = (1.7, 2.4)  # around the 2.0 of the crops that are judged
MAX_TURN = 0.25  # radians
BLUR_SHARE = 0.5  # decoded images are softer than a scanner's; sharpness must not decide
RATE = 1e-3


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of the training."""

    findings: tuple[str, ...]  # the classes; "normal tissue" comes last
    steps: int = 400
    batch_size: int = 16  # the classes alike
    size_px: int = 64  # side of a crop
    seed: int = 0  # of weights and draws

    @property
    def classes(self) -> tuple[str, ...]:
        return (*self.findings, NORMAL)


class FindingCropSampler:
    """Draws grey crops of real lesions, and of tissue in squares that hold no lesion; StudyInputError where a finding is missing.

    The mask is not shown, so the classifier judges the look of the tissue, not the outline.
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
            if not image.labelled_within(centre, 0.55 * side):
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

    def loss_of(forward: Any) -> Tensor:
        crops, classes = sampler.draw(settings.batch_size)
        return F.cross_entropy(forward(crops), classes, label_smoothing=0.05)

    return fit(network, loss_of, settings.steps, RATE, 1e-2)


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
