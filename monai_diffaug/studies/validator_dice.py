"""Dice of the validator on real lesions, and its false alarms on normal tissue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.masks.shapes import borrow_shape, place, random_blob
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.validator import ValidatorModel, load_validator
from monai_diffaug.prompts import NORMAL
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.studies.masked_images import MIN_AREA_PX, MaskedImage, cut_squares, lesion_square, lesions_of, masked, tissue_of
from monai_diffaug.studies.study_images import VALIDATION, StudyData, StudyImage
from monai_diffaug.training.crops import blurred

__all__ = ["false_alarm_rate", "lesion_crops", "lesion_dice", "predict", "tissue_crops"]

SIZE_PX = 128
LEAST_LESION_PX = 20
CONTEXT = 2.0
CONTEXT_RANGE = (1.4, 2.6)  # of the crops of normal tissue
FALSE_ALARM_SHARE = 0.02  # of the crop's area: less is a speck, not a lesion


def lesion_crops(data: StudyData, section: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Mask-centred crops of lesions, in random order: images (N, 3, 128, 128) in [-1, 1] and masks (N, 1, 128, 128) bool."""
    lesions = lesions_of(data.images(section), LEAST_LESION_PX)
    chosen = [lesions[i] for i in np.random.RandomState(0).permutation(len(lesions))[:limit]]
    squares = [lesion_square(one.mask_hw, CONTEXT) for one in chosen]
    crops = _cut(chosen, [centre for centre, _, _ in squares], [side for _, side, _ in squares])
    return crops[:, :3] * 2 - 1, crops[:, 3:] > 0.5


def _cut(images: Sequence[MaskedImage], centres: Sequence[Any], sides: Sequence[float], *turned: NDArray[Any]) -> Tensor:
    """(N, 4, 128, 128) in [0, 1]: three channels and the mask."""
    if not images:
        return torch.zeros(0, 4, SIZE_PX, SIZE_PX)
    stacked = [torch.cat([one.image.expand(3, -1, -1) / 255, one.mask]) for one in images]
    return cut_squares(stacked, np.stack(centres), sides, SIZE_PX, *turned)


def predict(validator: ValidatorModel, images: Tensor, seed: int = 0, batch_size: int = 16) -> Tensor:
    """Masks (N, 1, h, w) bool of crops."""
    generators = slice_generators(seed, range(len(images)))
    parts = [validator.predict(images[i : i + batch_size], generators[i : i + batch_size]) > 0.5 for i in range(0, len(images), batch_size)]
    return torch.cat(parts) if parts else torch.zeros_like(images[:, :1], dtype=torch.bool)


def lesion_dice(data: StudyData, section: str = VALIDATION, *, model: str = "tiny", limit: int | None = None) -> dict[str, float]:
    """Mean Dice of predicted and real masks in mask-centred crops, by data set, in [0, 1].

    Args:
        data: the data sets; those without lesions are left out.
        section: "validation" or "training".
        model: a source of ``load_validator``.
        limit: most lesions per data set, drawn with a fixed seed.
    """
    validator = shared_model(spec_of("validator", model), "cpu", load_validator)
    result = {}
    for name in data.datasets:
        images, masks = lesion_crops(data.only(name), section, limit)
        if len(images):
            predictions = predict(validator, images)
            overlap, total = (predictions & masks).sum((1, 2, 3)), predictions.sum((1, 2, 3)) + masks.sum((1, 2, 3))
            result[name] = float((2 * overlap / total).mean())
    return result


def false_alarm_rate(data: StudyData, section: str = VALIDATION, *, model: str = "tiny", n: int = 128) -> float:
    """Share of crops of normal tissue in which more than 2 % of the area is called a lesion."""
    validator = shared_model(spec_of("validator", model), "cpu", load_validator)
    predictions = predict(validator, tissue_crops(data, section, n))
    return float((predictions.float().mean((1, 2, 3)) > FALSE_ALARM_SHARE).float().mean())


def tissue_crops(data: StudyData, section: str, n: int, seed: int = 0) -> Tensor:
    """Crops (n, 3, 128, 128) in [-1, 1] of squares without a lesion, turned, mirrored, some of them softened, as training sees them.

    Args:
        data: one data set with lesions, whose outlines say where a lesion could be.
        section: "validation" or "training".
        n: number of crops.
        seed: of all draws.
    """
    rng = np.random.RandomState(seed)
    images = data.images(section)
    outlines = [mask for image in images for _, mask in image.findings if mask.sum() > MIN_AREA_PX]
    rng.rand(n)  # the sampler that the shipped figures were made with drew here whether a crop shows a lesion
    drawn = [_tissue_square(rng, images, outlines) for _ in range(n)]
    angles, flips = rng.uniform(-0.35, 0.35, n), rng.rand(n) < 0.5
    crops = _cut([one for one, _, _ in drawn], [centre for _, centre, _ in drawn], [side for *_, side in drawn], angles, flips)[:, :3]
    for i in range(n):
        rng.rand()  # likewise: whether its outline is filled with other tissue
        if rng.rand() < 0.35:
            crops[i] = blurred(crops[i : i + 1], rng.uniform(0.4, 1.3))[0]
    gamma = torch.from_numpy(np.exp(rng.uniform(-0.3, 0.3, (n, 1, 1, 1)))).float()
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (n, 1, 1, 1))).float()
    return (crops.clamp(0, 1) ** gamma * gain).clamp(0, 1) * 2 - 1


def _tissue_square(
    rng: np.random.RandomState, images: Sequence[StudyImage], outlines: Sequence[NDArray[np.bool_]]
) -> tuple[MaskedImage, NDArray[np.float64], float]:
    """An image with an outline on normal tissue, and centre and side of a square around it that is free of lesions."""
    while True:
        rng.randint(1), rng.rand()  # likewise: the data set
        image = images[rng.randint(len(images))]
        if rng.rand() < 0.6:
            outline = outlines[rng.randint(len(outlines))]
            shape = borrow_shape(rng, outline, rng.uniform(0.4, 1.1))
        else:
            shape = random_blob(rng, rng.randint(10, 100))
        mask = place(rng, shape, tissue_of(image), tries=10)
        if mask is None or not mask.any():
            continue
        centre, side, _ = lesion_square(mask, rng.uniform(*CONTEXT_RANGE))
        top, left = np.maximum(centre - 0.6 * side, 0).astype(int)
        bottom, right = np.ceil(centre + 0.6 * side).astype(int)
        if not image.labelled[top:bottom, left:right].any():
            return masked(image, mask, NORMAL), centre, side
