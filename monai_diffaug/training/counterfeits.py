"""Fillings of outlines that are no lesions, and changes after which a lesion is still one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.training.crops import blurred, grown

__all__ = ["FILLINGS", "cover", "disguise", "fill"]

SHARP_SHARE = 0.3  # of the outlines have a hard edge
SOFT_EDGE_PX = (0.7, 3.0)
BLUR_PX = (1.0, 4.0)
SHIFT_PX = 24
BRIGHTNESS = 0.06  # of tissue that is brighter or darker than it was
FLAT_OFFSET = 0.4  # of a flat patch, from the mean of what it covers
FLAT_NOISE = 0.015  # standard deviation of its noise, at most
LESION_BRIGHTNESS, LESION_CONTRAST = 0.05, 0.25  # largest changes of a lesion that stays one
NOISE = 0.03
ASTRAY_SHARE = 1 / 6  # of flat and foreign patches lie anywhere in the crop

Donor = Callable[[], tuple[Tensor, Tensor]]  # another crop (3, S, S) in [0, 1], and the outline (1, S, S) of something on it


def edged(rng: np.random.RandomState, outline: Tensor) -> Tensor:
    """An outline (1, S, S) with a hard or a soft edge."""
    return outline if rng.rand() < SHARP_SHARE else blurred(outline[None], rng.uniform(*SOFT_EDGE_PX))[0]


def blend(image: Tensor, filling: Tensor, soft: Tensor) -> Tensor:
    return (image * (1 - soft) + filling * soft).clamp(0, 1)


def flat(rng: np.random.RandomState, image: Tensor, outline: Tensor) -> Tensor:
    """One grey level or colour with little noise: near that of the covered tissue, or any grey."""
    mean = (image * outline).sum((1, 2)) / outline.sum().clamp(min=1)
    level = mean + rng.uniform(-FLAT_OFFSET, FLAT_OFFSET) if rng.rand() < 0.75 else torch.full((3,), rng.uniform(0, 1))
    noise = torch.from_numpy(rng.normal(size=(1, *image.shape[1:]))).float() * rng.uniform(0, FLAT_NOISE) * float(rng.rand() < 0.5)
    return level[:, None, None].float() + noise


def smooth(rng: np.random.RandomState, image: Tensor, outline: Tensor) -> Tensor:
    return blurred(image[None], rng.uniform(*BLUR_PX))[0]


def moved(rng: np.random.RandomState, image: Tensor, outline: Tensor) -> Tensor:
    return torch.roll(image, (int(rng.randint(-SHIFT_PX, SHIFT_PX + 1)), int(rng.randint(-SHIFT_PX, SHIFT_PX + 1))), (1, 2))


def relit(rng: np.random.RandomState, image: Tensor, outline: Tensor) -> Tensor:
    return image + rng.uniform(-BRIGHTNESS, BRIGHTNESS)


FILLINGS = {"flat": flat, "smooth": smooth, "moved": moved, "relit": relit}  # made of the image itself
FOREIGN = ("tissue", "lesion")  # made of another image
CHANCES = {"flat": 0.36, "smooth": 0.14, "moved": 0.1, "relit": 0.08, "tissue": 0.16, "lesion": 0.16}


def fill(rng: np.random.RandomState, image: Tensor, outline: Tensor, *, tissue: Donor, lesion: Donor) -> Tensor:
    """Normal tissue whose outline is filled with what is no lesion there.

    The filling is flat, the tissue itself (blurred, moved, brighter or darker), tissue of another image, or a lesion of another data set
    under its own outline. One patch in six lies anywhere in the crop: at the border, or over the black surround.

    Args:
        rng: draws the filling.
        image: (3, S, S) in [0, 1].
        outline: (1, S, S) in {0, 1}.
        tissue, lesion: draw normal tissue, and a lesion that has no business here.

    Returns:
        (3, S, S) in [0, 1].
    """
    kind = str(rng.choice(list(CHANCES), p=list(CHANCES.values())))
    if kind in FOREIGN:
        filling, place = (tissue if kind == "tissue" else lesion)()
        outline = outline if kind == "tissue" else place
    else:
        filling = FILLINGS[kind](rng, image, outline)
    if kind in ("flat", *FOREIGN) and rng.rand() < ASTRAY_SHARE:
        shift = tuple(int(s) for s in rng.randint(-image.shape[-1] // 2, image.shape[-1] // 2, 2))
        outline, filling = torch.roll(outline, shift, (1, 2)), torch.roll(filling, shift, (1, 2))
    return blend(image, filling, edged(rng, outline))


def cover(rng: np.random.RandomState, image: Tensor, lesion: Tensor, *, tissue: Donor) -> Tensor:
    """A lesion (1, S, S) that is hidden: by a flat patch, strong blur or other tissue, a little larger than itself.

    Args:
        rng, image, tissue: see ``fill``.
        lesion: (1, S, S) in {0, 1}.
    """
    outline = grown(lesion, int(rng.randint(1, 5)))
    kind = rng.randint(3)
    filling = flat(rng, image, outline) if kind < 2 else tissue()[0]
    return blend(image, filling, edged(rng, outline))


def disguise(rng: np.random.RandomState, image: Tensor, lesion: Tensor) -> Tensor:
    """The same lesion with other brightness, contrast or noise inside a hard or soft edge, so that an edge alone is no counterfeit."""
    outline = grown(lesion, int(rng.randint(0, 4)))
    mean = (image * outline).sum((1, 2), keepdim=True) / outline.sum().clamp(min=1)
    changed = mean + (image - mean) * (1 + rng.uniform(-LESION_CONTRAST, LESION_CONTRAST))
    changed = changed + rng.uniform(-LESION_BRIGHTNESS, LESION_BRIGHTNESS)
    if rng.rand() < 0.3:
        changed = changed + torch.from_numpy(rng.normal(size=(1, *image.shape[1:]))).float() * rng.uniform(0, NOISE)
    return blend(image, changed, edged(rng, outline))
