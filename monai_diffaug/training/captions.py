"""Captions from measurement: the words of a modality's vocabulary that are true of a mask on an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.prompts import NORMAL, vocabulary_of

__all__ = ["TEMPLATES", "MaskAttributes", "caption", "measure", "with_dropout"]

# Several paraphrases, so that words and not whole sentences carry the meaning.
TEMPLATES = (
    "{modality} of {anatomy}, {finding}, {attributes}",
    "{modality} of {anatomy}, {finding}, {attributes}",
    "{modality} of {anatomy}, {attributes} {finding}",
    "{finding} in {anatomy}, {attributes}, {modality}",
    "{anatomy} {modality}, {finding}, {attributes}",
)
SMALL_FRACTION, LARGE_FRACTION = 0.015, 0.06
ELLIPSE_IOU_OF_IRREGULAR = 0.85
AXIS_RATIO_OF_ROUND = 0.8
GREY_STEP = 0.35
SHARP_JUMP = 0.6


@dataclass(frozen=True)
class MaskAttributes:
    """Index of the word on each measurable axis (see ``monai_diffaug.prompts``)."""

    size: int
    shape: int
    margin: int
    grey: int


def _shape_word(mask: NDArray[np.bool_]) -> int:
    ys, xs = np.nonzero(mask)
    if len(ys) < 6:
        return 0
    covariance = np.cov(np.stack([ys, xs])) + np.eye(2) / 12
    eigenvalues = np.linalg.eigvalsh(covariance)
    offsets = np.moveaxis(np.indices(mask.shape), 0, -1) - np.array([ys.mean(), xs.mean()])
    ellipse = np.einsum("...i,ij,...j->...", offsets, np.linalg.inv(covariance), offsets) <= 4.0
    iou = (ellipse & mask).sum() / (ellipse | mask).sum()
    if iou < ELLIPSE_IOU_OF_IRREGULAR:
        return 2
    return 0 if np.sqrt(eigenvalues[0] / eigenvalues[1]) > AXIS_RATIO_OF_ROUND else 1


def measure(grey: NDArray[np.floating], mask: NDArray[np.bool_], image_fraction: float) -> MaskAttributes:
    """Measure size, shape, margin and grey value of a lesion.

    Args:
        grey: (h, w) intensities of a crop, any unit.
        mask: (h, w) mask of the lesion, not empty.
        image_fraction: share of the whole image that the lesion covers, in (0, 1].
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    near, far = binary_dilation(mask, iterations=3), binary_dilation(mask, iterations=12)
    ring, rim_out, rim_in = far & ~near, near & ~mask, mask & ~binary_erosion(mask, iterations=3)
    surround = grey[ring] if ring.any() else grey[~mask]
    spread = float(surround.std()) + 1e-3
    contrast = float(grey[mask].mean() - surround.mean())
    grey_word = 0 if contrast < -GREY_STEP * spread else 2 if contrast > GREY_STEP * spread else 1
    jump = float(grey[rim_out].mean() - grey[rim_in].mean()) if rim_out.any() and rim_in.any() else 0.0
    sharp = abs(jump) > SHARP_JUMP * max(abs(contrast), 0.2 * spread)
    size = 0 if image_fraction < SMALL_FRACTION else 1 if image_fraction < LARGE_FRACTION else 2
    return MaskAttributes(size, _shape_word(mask), 0 if sharp else 1, grey_word)


def caption(rng: np.random.RandomState, modality: str, anatomy: str, finding: str, measured: MaskAttributes | None) -> str:
    """One of several paraphrases; each measured attribute is named half of the time, none for normal tissue."""
    vocabulary = vocabulary_of(modality)
    words: list[str] = []
    if measured is not None and finding != NORMAL:
        axes = {
            "size": measured.size,
            "shape": measured.shape,
            "margin": measured.margin,
            vocabulary.grey_axis: measured.grey,
        }
        words = [vocabulary.attributes[axis][index] for axis, index in axes.items() if rng.rand() < 0.5]
    template = TEMPLATES[rng.randint(len(TEMPLATES))]
    text = template.format(modality=vocabulary.modality, anatomy=anatomy, finding=finding, attributes=", ".join(words))
    return ", ".join(part.strip() for part in text.split(",") if part.strip())


def with_dropout(captions: Sequence[str], share: float, generator: torch.Generator) -> list[str]:
    """The captions, a random share of them left empty: classifier-free guidance needs a model that knows the empty prompt."""
    is_dropped = torch.rand(len(captions), generator=generator) < share
    return ["" if drop else text for drop, text in zip(is_dropped.tolist(), captions, strict=True)]
