"""The volumes that are repainted: grey values that 8 bit can hold, masks that fit the latents' grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.geometry.slices import slice_plane, to_slices, touched

__all__ = ["Volume", "make_volume"]


@dataclass(frozen=True)
class Volume:
    """One sample.

    Attributes:
        image: (1, H, W, D) float32, whole numbers from 0 to 255: the rival that works with 8 bit loses nothing on its way in.
        mask: (1, H, W, D) in {0, 1}.
        slices: (D, 1, H, W), the image as the model sees it.
        masks: (D, 1, H, W).
        indices: the slices that the mask touches.
    """

    image: Tensor
    mask: Tensor
    slices: Tensor
    masks: Tensor
    indices: list[int]


def make_volume(size_px: int, depth: int, *, empty_fraction: float = 0.0, cell_px: int = 4, lesion: float = 0.4, seed: int = 0) -> Volume:
    """A speckled volume with a lesion in its middle slices.

    The lesion is an ellipse of whole cells of the latents' grid: there diffusers' way to shrink a mask (nearest) and this package's
    (maximum) agree, so that the results can be compared.

    Args:
        size_px: side of a slice.
        depth: number of slices.
        empty_fraction: share of the slices that the mask does not touch.
        cell_px: pixels of the image per pixel of the latents.
        lesion: diameter of the lesion relative to the slice.
        seed: of the image.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(depth, 1, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, (size_px, size_px), mode="bicubic", align_corners=False)
    speckle = torch.rand(depth, 1, size_px, size_px, generator=generator)
    image = (255 * (0.7 * smooth + 0.3 * speckle)).round().clamp(0, 255).permute(1, 2, 3, 0).contiguous()
    cells = -(-size_px // cell_px)
    axis = (torch.arange(cells) + 0.5) / cells - 0.5
    ellipse = ((axis[:, None] / lesion) ** 2 + (axis[None, :] / (0.8 * lesion)) ** 2 <= 0.25).float()
    outline = ellipse.repeat_interleave(cell_px, 0).repeat_interleave(cell_px, 1)[:size_px, :size_px]
    filled = depth - round(empty_fraction * depth)
    first = (depth - filled) // 2
    mask = torch.zeros_like(image)
    mask[..., first : first + filled] = outline[None, :, :, None]
    plane = slice_plane(None, "axial", 3)
    masks = to_slices(mask, plane)
    return Volume(image, mask, to_slices(image, plane).contiguous(), masks.contiguous(), touched(masks))
