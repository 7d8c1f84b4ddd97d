"""Where a study looks: real lesions under their own masks, and outlines of real lesions put on normal tissue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.geometry.roi import crop, roi_around
from monai_diffaug.masks.shapes import borrow_shape, largest_component, place
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.embedded.datasets import Sample, load_samples

__all__ = ["MIN_AREA_PX", "Region", "crop_of", "free_places", "real_lesions"]

MIN_AREA_PX = 60
SCALE_RANGE = (0.6, 1.0)  # of a borrowed outline
CONTEXT = 2.0


@dataclass(frozen=True)
class Region:
    """A region of an image.

    Attributes:
        image: (C, H, W) uint8, C 1 or 3.
        mask: (1, H, W) uint8, one connected part.
        finding: what is there; "normal tissue" in a free place.
        group: of the image; near-duplicates share one.
        index: of the image in its source.
    """

    image: Tensor
    mask: Tensor
    finding: str
    group: int
    index: int


def real_lesions(n: int | None = None, *, split: str = "validation", source: str = "breast_ultrasound", seed: int = 0) -> list[Region]:
    """Lesions of 60 pixels or more, each the largest part of its finding, in random order.

    Args:
        n: at most so many; None takes all.
        split: "train" or "validation".
        source: name in ``training.datasets.SOURCES``.
        seed: of the order.
    """
    found = []
    for sample in load_samples(source, split):
        for finding, mask in sample.masks():
            part = largest_component(mask)
            if part.sum() >= MIN_AREA_PX:
                found.append(Region(_picture(sample), torch.from_numpy(part[None].astype(np.uint8)), finding, sample.group, sample.index))
    order = np.random.RandomState(seed).permutation(len(found))
    return [found[i] for i in order[:n]]


def free_places(
    n: int, *, split: str = "validation", source: str = "breast_ultrasound", seed: int = 0, outlines_of: str | None = None
) -> list[Region]:
    """``n`` outlines of lesions of the split, mirrored and scaled, on the tissue of normal images; the images take turns.

    Args:
        n: how many.
        split: "train" or "validation".
        source: name in ``training.datasets.SOURCES``.
        seed: of the choice of images, outlines and places.
        outlines_of: a finding; only its lesions lend their outlines. None takes all.

    Raises:
        ValueError: the split has no normal images or no such lesions.
    """
    rng = np.random.RandomState(seed)
    samples = load_samples(source, split)
    normal = [sample for sample in samples if not sample.label.any()]
    lesions = [(finding, mask) for sample in samples for finding, mask in sample.masks() if mask.sum() >= MIN_AREA_PX]
    outlines = [largest_component(mask) for finding, mask in lesions if outlines_of in (None, finding)]
    if not normal or not outlines:
        kind = "lesions" if outlines_of is None else f"lesions called {outlines_of!r}"
        raise ValueError(f"{source} ({split}) has {len(normal)} normal images and {len(outlines)} {kind}; free places need both")
    order = rng.permutation(len(normal))
    tissue = {int(i): normal_tissue(normal[i].image.max(-1) / 255, normal[i].label) for i in order[:n]}
    places: list[Region] = []
    turn = 0
    while len(places) < n:
        chosen = int(order[turn % len(normal)])
        turn += 1
        outline = outlines[rng.randint(len(outlines))]
        mask = place(rng, borrow_shape(rng, outline, rng.uniform(*SCALE_RANGE)), tissue[chosen])
        if mask is not None and mask.sum() >= MIN_AREA_PX:
            sample = normal[chosen]
            places.append(Region(_picture(sample), torch.from_numpy(mask[None].astype(np.uint8)), NORMAL, sample.group, sample.index))
        elif turn > 100 * n:
            raise ValueError(f"found {len(places)} of {n} free places in {len(normal)} normal images")
    return places


def crop_of(region: Region, size_px: int, context: float = CONTEXT, image: Tensor | None = None) -> Tensor:
    """The square around the mask, (C, size_px, size_px) float32 in [-1, 1]: of the region's image, or of an edit of it."""
    picture = (region.image if image is None else image).float() / 127.5 - 1
    return crop(picture, roi_around(region.mask[0], size_px, context), size_px).clamp(-1, 1)


def _picture(sample: Sample) -> Tensor:
    """(1, H, W) of a grey sample, else (3, H, W)."""
    image = torch.from_numpy(sample.image).permute(2, 0, 1)
    grey = bool((image == image[:1]).all())
    return image[:1].clone() if grey else image.contiguous()
