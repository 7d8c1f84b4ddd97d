"""Square crops of a batch of images, resampled to the model's size in one antialiased ``grid_sample``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["crop_squares"]


def crop_squares(
    images: Tensor, centres_yx: Tensor, sides: Tensor, size: int, angles: Tensor | None = None, flips: Tensor | None = None
) -> Tensor:
    """Cut one rotated, flipped square from each image.

    Args:
        images: (N, C, H, W) float.
        centres_yx: (N, 2) centre of the square in pixels.
        sides: (N,) side of the square in pixels.
        size: side of the result in pixels; sampled at twice that and averaged 2x2, so that downscaling does not alias.
        angles: (N,) radians, default 0.
        flips: (N,) bool, mirror left to right, default no.

    Returns:
        (N, C, size, size); what lies outside the image repeats its border.
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
