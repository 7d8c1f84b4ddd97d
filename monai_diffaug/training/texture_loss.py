"""A loss that keeps the texture of a decoder: local energies in two fine bands.

A squared or absolute error is smallest for the mean of all textures that a latent may stand for, which is flat. The energy of a small
cell does not depend on the positions of its speckles, so this loss demands the right amount of texture and not the right pixels.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["band_energies", "texture_loss"]

SIGMAS_PX = (1.0, 2.0)
REACH = 3.0  # standard deviations after which a Gaussian is cut off
CELL_PX = 8
FLOOR = (0.5 / 127.5) ** 2  # half a grey level of 8 bits: what is quieter is black padding, not texture
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (1 / 2, -1 / 2, 0.0), (1 / 4, 1 / 4, -1 / 2))  # brightness, red - green, yellow - blue
WEIGHTS = (1.0, 0.1, 0.1)  # of brightness and the two colour differences


def band_energies(images: Tensor) -> list[Tensor]:
    """Mean squares, over cells of 8 x 8 pixels, of the two finest bands: image - G1 and G1 - G2 with Gaussians of 1 and 2 pixels.

    Args:
        images: (B, C, H, W) with H and W of at least 8 pixels, any unit.

    Returns:
        Two of (B, C, H // 8, W // 8), in the square of the unit.
    """
    levels = [images, *(_smoothed(images, sigma) for sigma in SIGMAS_PX)]
    return [F.avg_pool2d((finer - coarser).square(), CELL_PX) for finer, coarser in pairwise(levels)]


def texture_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the logarithms of local energies (see ``band_energies``), a scalar.

    Brightness counts fully and two colour differences a tenth each; grey images have none. Computed in float32, also under autocast.

    Args:
        decoded: (B, 3, H, W) in [-1, 1], H and W of at least 8 pixels.
        target: the same.

    >>> target = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(1, 3, 32, 32) * 2 - 1
    >>> moved, flat = target.roll((8, 8), (2, 3)), torch.zeros_like(target)
    >>> bool(texture_loss(target, target) == 0), bool(texture_loss(moved, target) < 0.1 * texture_loss(flat, target))
    (True, True)
    """
    with torch.autocast(decoded.device.type, enabled=False):
        pairs = zip(band_energies(_to_opponent(decoded.float())), band_energies(_to_opponent(target.float())), strict=True)
        weights = torch.tensor(WEIGHTS, device=decoded.device)[:, None, None]
        parts = [(((ours + FLOOR).log() - (theirs + FLOOR).log()).abs() * weights).sum(1).mean() for ours, theirs in pairs]
        return torch.stack(parts).mean()


def _smoothed(images: Tensor, sigma_px: float) -> Tensor:
    """Gaussian of (B, C, H, W) in pixels, with reflected borders."""
    reach = math.ceil(REACH * sigma_px)
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel = (weights / weights.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel[..., None, :], groups=images.shape[1])
    return F.conv2d(rows, kernel[..., None], groups=images.shape[1])


def _to_opponent(images: Tensor) -> Tensor:
    """(B, 3, H, W) red, green, blue -> brightness and two colour differences, which are 0 for grey images."""
    mixing = torch.tensor(OPPONENT, dtype=images.dtype, device=images.device)
    return torch.einsum("oc,bchw->bohw", mixing, images)
