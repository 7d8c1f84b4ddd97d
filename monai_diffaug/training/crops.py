"""Square training crops: where they lie, how they are cut, turned, mirrored and blurred."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.captions import caption, measure
from monai_diffaug.training.embedded.datasets import Sample

__all__ = ["CONTEXT_RANGE", "MIN_SIDE_PX", "blurred", "crop_squares", "cut_square", "grown", "square_around"]

CONTEXT_RANGE = (1.5, 2.6)  # side of a crop, as a multiple of the extent of its mask
MIN_SIDE_PX = 32
JITTER_SHARE = 0.5  # of the room around the mask
TURN_RAD = 0.25
LOG_GAMMA = 0.25


def square_around(
    rng: np.random.RandomState, mask: NDArray[np.bool_], longest_px: int, *, side_px: float | None = None
) -> tuple[NDArray[np.float64], float]:
    """A square that shows a mask, somewhere near its middle.

    Args:
        rng: draws the side, unless it is given, then the place.
        mask: (H, W), not empty.
        longest_px: upper bound of the drawn side; a mask that is longer than this is still shown whole.
        side_px: fixed side; a side shorter than the mask's extent shows a part of the mask.

    Returns:
        Centre (y, x) and side, in pixels.
    """
    ys, xs = np.nonzero(mask)
    extent = int(max(np.ptp(ys), np.ptp(xs))) + 1
    if side_px is None:
        side_px = float(np.clip(extent * rng.uniform(*CONTEXT_RANGE), MIN_SIDE_PX, max(longest_px, extent)))
    room = abs(side_px - extent) / 2 * JITTER_SHARE
    middle = np.array([(ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2])
    return middle + rng.uniform(-room, room, 2), side_px


def cut_square(
    rng: np.random.RandomState,
    picture_and_masks: Tensor,
    centre_yx: NDArray[np.float64],
    side_px: float,
    size_px: int,
    *,
    turn_rad: float = TURN_RAD,
    log_gamma: float = LOG_GAMMA,
) -> tuple[Tensor, Tensor]:
    """Cut a square, turned a little, mirrored half of the time, brighter or darker by a random gamma.

    Args:
        rng: draws the angle, the mirroring and the gamma.
        picture_and_masks: (3 + K, H, W): three channels in [0, 1] and K masks in {0, 1}.
        centre_yx, side_px: of the square, in pixels.
        size_px: S, side of the result.
        turn_rad: largest angle.
        log_gamma: largest logarithm of the gamma.

    Returns:
        (3, S, S) in [0, 1], and (K, S, S): the share of a pixel that each mask covers.
    """
    shrink = int(side_px // (2 * size_px))  # crop_squares averages 2x2 samples; larger areas are averaged here
    pictures = picture_and_masks[None]
    if shrink > 1:
        pictures = F.avg_pool2d(pictures, shrink, ceil_mode=True)
        centre_yx, side_px = (centre_yx + 0.5) / shrink - 0.5, side_px / shrink
    square = crop_squares(
        pictures,
        torch.from_numpy(centre_yx)[None],
        torch.tensor([side_px]),
        size_px,
        torch.tensor([rng.uniform(-turn_rad, turn_rad)]),
        torch.tensor([rng.rand() < 0.5]),
    )[0]
    return square[:3].clamp(0, 1) ** float(np.exp(rng.uniform(-log_gamma, log_gamma))), square[3:]


def grown(mask: Tensor, radius_px: int) -> Tensor:
    """Dilate a mask (1, h, w) in {0, 1} by a square of the given radius."""
    dilated: Tensor = F.max_pool2d(mask[None], 2 * radius_px + 1, 1, radius_px)[0]
    return dilated


def blurred(images: Tensor, sigma_px: float) -> Tensor:
    """Smooth images (N, C, h, w) by a Gaussian cut at 3 sigma; borders are repeated."""
    radius = max(1, round(3 * sigma_px))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma_px) ** 2)
    taps = (taps / taps.sum()).to(images)
    n, c, h, w = images.shape
    flat = F.pad(images.reshape(n * c, 1, h, w), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(flat, taps[None, None, None]), taps[None, None, :, None]).reshape(n, c, h, w)


def crop_squares(
    images: Tensor, centres_yx: Tensor, sides: Tensor, size: int, angles: Tensor | None = None, flips: Tensor | None = None
) -> Tensor:
    """Cut one rotated, mirrored square from each image.

    Args:
        images: (N, C, H, W) float.
        centres_yx: (N, 2) centre of the square in pixels.
        sides: (N,) side of the square in pixels.
        size: side of the result in pixels; sampled at twice that and averaged 2x2, so that downscaling does not alias.
        angles: (N,) radians, default 0.
        flips: (N,) bool, mirror left to right, default no.

    Returns:
        (N, C, size, size); outside the image its border is repeated.
    """
    n, _, height, width = images.shape
    angles = torch.zeros(n) if angles is None else angles
    flips = torch.zeros(n, dtype=torch.bool) if flips is None else flips
    sign = torch.where(flips, -1.0, 1.0)
    cos, sin = torch.cos(angles), torch.sin(angles)
    half_y, half_x = sides / height, sides / width
    centre_y = (centres_yx[:, 0] + 0.5) * 2 / height - 1
    centre_x = (centres_yx[:, 1] + 0.5) * 2 / width - 1
    theta = torch.stack(
        [
            torch.stack([sign * cos * half_x, -sin * half_x, centre_x], -1),
            torch.stack([sign * sin * half_y, cos * half_y, centre_y], -1),
        ],
        dim=1,
    ).to(images.dtype)
    grid = F.affine_grid(theta, [n, 1, 2 * size, 2 * size], align_corners=False)
    fine = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(fine, 2)


class CaptionedCrop(NamedTuple):
    """A crop of a real image.

    Attributes:
        image: (3, S, S) in [-1, 1].
        mask: (1, S, S) float in {0, 1}.
        text: what is seen under the mask.
    """

    image: Tensor
    mask: Tensor
    text: str


def captioned_crop(
    rng: np.random.RandomState, sample: Sample, mask: NDArray[np.bool_], finding: str, size_px: int, *, side_px: float | None = None
) -> CaptionedCrop:
    """One crop around a mask, with a caption of its finding and, for lesions, of what is measured under the mask.

    Args:
        rng: of all draws.
        sample: the image.
        mask: (H, W), one connected part.
        finding: what is under the mask.
        size_px: S, side of the result.
        side_px: side of the square in the image; None draws one that shows the mask with its surroundings.
    """
    centre, side_px = square_around(rng, mask, max(mask.shape), side_px=side_px)
    stacked = np.concatenate([sample.image.astype(np.float32) / 255, mask[..., None]], -1)
    image, coverage = cut_square(rng, torch.from_numpy(stacked).permute(2, 0, 1).float(), centre, side_px, size_px)
    hard = coverage > 0.5
    measured = None
    if finding != NORMAL and sample.label.any() and bool(hard.any()):
        measured = measure(image.mean(0).numpy(), hard[0].numpy(), float(mask.mean()))
    text = caption(rng, sample.source.modality, sample.source.anatomy, finding, measured)
    return CaptionedCrop(image * 2 - 1, hard.float(), text)
