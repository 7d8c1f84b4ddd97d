"""Contrast of a painted lesion against the tissue around it: measured for the record, and required by the option group ``Contrast``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.edit.signature import option_group
from monai_diffaug.geometry.slices import SlicePlane, slab_of, to_slices
from monai_diffaug.prompts import expected_sign

__all__ = ["NOT_VISIBLE", "Contrast", "LesionContrast", "lesion_contrast"]

NOT_VISIBLE = "not visible"
"""First words of the reason of an edit that ``Contrast`` refuses."""
RIM_FROM_PX, RIM_TO_PX = 3, 12  # the rim of tissue around a mask, as in the captions that the embedded model was trained with
MOST_CNR = 1000.0  # of a lesion in tissue without noise
MAD_TO_STD = 1.4826  # of a normal distribution
SIGN_WORDS = {-1: "darker", 1: "brighter"}


class LesionContrast(NamedTuple):
    """Grey values inside a mask against its rim.

    Attributes:
        contrast: median inside less median of the rim, in the unit of the image.
        cnr: contrast-to-noise ratio, the contrast in standard deviations of the rim (from the median absolute deviation).
    """

    contrast: float = 0.0
    cnr: float = 0.0


@option_group
@dataclass(frozen=True)
class Contrast:
    """The contrast that an edit must reach to count as painted; otherwise image and label stay as they were.

    The record then has ``applied=False`` and a reason that begins with "not visible"; ``LatentValidated(on_reject="retry")`` tries another
    seed. The defaults accept every edit: the record holds ``contrast`` and ``cnr`` in any case.

    Args:
        min_contrast: least absolute contrast of the inside against the rim (3 to 12 pixels around the mask), in the unit of the image.
        min_cnr: the same in standard deviations of the rim.
        follow_words: a prompt that calls the finding dark ("hypodense", "hypoechoic", "hypointense", "lucent", "darker") or bright must
            be followed in sign.

    Raises:
        ValueError: an option is negative.

    >>> Contrast(min_cnr=0.5).refusal(LesionContrast(contrast=4.0, cnr=0.2), "CT of abdomen, hepatic cyst, hypodense")
    'not visible: contrast-to-noise ratio 0.2 < 0.5'
    >>> Contrast(follow_words=True).refusal(LesionContrast(contrast=4.0, cnr=0.2), "CT of abdomen, hepatic cyst, hypodense")
    'not visible: it is brighter than its rim (contrast 4), the prompt says darker'
    """

    min_contrast: float = 0.0
    min_cnr: float = 0.0
    follow_words: bool = False

    def __post_init__(self) -> None:
        for name in ("min_contrast", "min_cnr"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    def refusal(self, measured: LesionContrast, prompt: str) -> str:
        """Why an edit does not count as painted; empty if it does."""
        contrast, cnr = measured
        sign = expected_sign(prompt) if self.follow_words else 0
        if abs(contrast) < self.min_contrast:
            return f"{NOT_VISIBLE}: contrast {abs(contrast):.3g} < {self.min_contrast:g}"
        if abs(cnr) < self.min_cnr:
            return f"{NOT_VISIBLE}: contrast-to-noise ratio {abs(cnr):.3g} < {self.min_cnr:g}"
        if sign and sign * contrast <= 0:
            level = f"{SIGN_WORDS[-sign]} than" if contrast else "as bright as"
            return f"{NOT_VISIBLE}: it is {level} its rim (contrast {contrast:.3g}), the prompt says {SIGN_WORDS[sign]}"
        return ""


def lesion_contrast(volume: Tensor, mask: Tensor, plane: SlicePlane | None) -> LesionContrast:
    """Contrast of the inside of a mask against a rim 3 to 12 pixels around it in each touched slice.

    Of three channels the mean counts, of another number of channels the one with the largest ratio. Without a rim (the mask covers the
    slices) or without a mask both are 0.

    Args:
        volume: (C, H, W[, D]) plain.
        mask: (1, H, W[, D]) plain, non-zero inside.
        plane: of the slices; None for a 2-D image.

    >>> import torch
    >>> image, mask = torch.full((1, 64, 64), 100.0), torch.zeros(1, 64, 64)
    >>> mask[:, 24:40, 24:40] = 1
    >>> lesion_contrast(image - 30 * mask, mask, None).contrast
    -30.0
    """
    slab = slab_of(mask, plane)
    if not slab.length:
        return LesionContrast()
    inside = to_slices(slab.of(mask), plane).to(volume.device) != 0
    hits = inside.flatten(0, 1).any(0)
    rows, columns = (_near(hits.any(1 - axis), hits.shape[axis]) for axis in (0, 1))
    inside = inside[..., rows, columns]
    slices = to_slices(slab.of(volume), plane)[..., rows, columns].float()
    rim = _grown(inside, RIM_TO_PX) & ~_grown(inside, RIM_FROM_PX) & inside.flatten(1).any(1)[:, None, None, None]
    if not bool(rim.any()):
        return LesionContrast()
    channels = slices.mean(1, keepdim=True) if slices.shape[1] == 3 else slices
    measured = [_against(channels[:, i : i + 1][inside], channels[:, i : i + 1][rim]) for i in range(channels.shape[1])]
    return max(measured, key=lambda each: abs(each.cnr))


def _against(lesion: Tensor, rim: Tensor) -> LesionContrast:
    level = rim.median()
    contrast = float(lesion.median() - level)
    noise = MAD_TO_STD * float((rim - level).abs().median()) or float(rim.std(correction=0))
    ratio = contrast / noise if noise > 0 else math.copysign(MOST_CNR, contrast) if contrast else 0.0
    return LesionContrast(contrast, min(max(ratio, -MOST_CNR), MOST_CNR))


def _near(hits: Tensor, length: int) -> slice:
    """Positions of one axis within the reach of the rim."""
    touched = hits.nonzero().flatten()
    return slice(max(int(touched[0]) - RIM_TO_PX, 0), min(int(touched[-1]) + RIM_TO_PX + 1, length))


def _grown(mask: Tensor, reach: int) -> Tensor:
    """(S, 1, h, w) bool, True within ``reach`` pixels along rows and columns."""
    rows = F.max_pool2d(mask.float(), (2 * reach + 1, 1), 1, (reach, 0))
    return F.max_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach)) > 0
