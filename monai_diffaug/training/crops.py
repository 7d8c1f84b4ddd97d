"""Square training crops: where they lie, how they are cut, turned, mirrored and blurred."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

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
        rng: draws the side, unless ``side_px`` fixes it, then the place.
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
    """Dilate a mask (1, h, w) in {0, 1} by a square of this radius."""
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
