"""Open, cut and put back: stacks of slices, squares of the model's size, and their composite. No model is needed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.geometry.roi import Roi, crop, paste, resize, square_from
from monai_diffaug.geometry.slices import Slab, SlicePlane, from_slices, to_slices, touched
from monai_diffaug.geometry.squares import Square
from monai_diffaug.geometry.window import Window
from monai_diffaug.masks.soft_edge import composite, soft_mask

__all__ = ["Patch", "PromptMix", "ShownChannel", "Stack", "cut_patch", "open_stack", "put_back", "shown_channels"]

PromptMix = tuple[tuple[float, str], ...]
"""(weight, text) pairs, see ``monai_diffaug.sampling.prompt_mix``."""

VISIBLE = 1e-3  # soft weights below this count as outside the region
RIM_PX = 2  # reach of the resampled edge of a lesion in a slice that is made smaller


@dataclass(frozen=True)
class ShownChannel:
    """A channel that the model sees alone.

    Attributes:
        index: of the channel.
        window: intensity range that the model sees.
        prompt: (weight, text) pairs.
    """

    index: int
    window: Window
    prompt: PromptMix


class Stack(NamedTuple):
    """One request as a stack of slices, from the first to the last that the mask touches.

    Attributes:
        volume: (C, H, W[, D]) the whole image, in its unit and dtype.
        slab: position of the S slices in the volume.
        slices: (S, C, h, w).
        masks: (S, 1, h, w), non-zero means repaint.
        plane: plane of the slices, None for a 2-D image.
        indices: those of the S slices that the mask touches.
        window: intensity range that the model sees.
        pixel_mm: size of a pixel of the slices, the mean of its sides; 1 without an affine.
        prompt: (weight, text) pairs, mostly one.
        seed: of all noise of this request.
        control: (S, C', h, w) in [0, 1], the image for a ControlNet; None without one.
        channels: those that are repainted one by one, each with its own window and prompt; empty when all channels are one picture.
        slice_mm: distance of the slices; 1 without an affine.
    """

    volume: Tensor
    slab: Slab
    slices: Tensor
    masks: Tensor
    plane: SlicePlane | None
    indices: list[int]
    window: Window
    pixel_mm: float
    prompt: PromptMix
    seed: int
    control: Tensor | None = None
    channels: tuple[ShownChannel, ...] = ()
    slice_mm: float = 1.0


class Patch(NamedTuple):
    """A square of a touched slice, cropped to the model's size.

    Attributes:
        row: index of the slice in its stack.
        position: index of the slice in the volume.
        roi: position of the square in the slice.
        soft: (h, w) composite weights on the slice.
        image: (3, size, size) in [-1, 1].
        core: (1, size, size) in {0, 1}, the mask without a soft edge.
        hard: (1, size, size) in {0, 1}, pixels that the edit may change: the UNet's mask.
        weights: (1, size, size) in [0, 1], the sampler's soft mask.
        control: (3, size, size) in [0, 1] or None.
        part: number of the lesion if the lesions of a slice have one square each, else 0.
        channel: the channel that it shows; None for a grey or colour picture.
    """

    row: int
    position: int
    roi: Roi
    soft: Tensor
    image: Tensor
    core: Tensor
    hard: Tensor
    weights: Tensor
    control: Tensor | None
    part: int = 0
    channel: ShownChannel | None = None


def open_stack(
    volume: Tensor,
    region: Tensor,
    plane: SlicePlane | None,
    slab: Slab,
    window: Window,
    *,
    prompt: PromptMix,
    seed: int,
    pixel_mm: float = 1.0,
    control: Tensor | None = None,
    channels: tuple[ShownChannel, ...] = (),
    slice_mm: float = 1.0,
) -> Stack:
    """Cut image (C, H, W[, D]), region (1, H, W[, D]) and control (C', H, W[, D]) into slices of one plane."""
    slices, masks = to_slices(slab.of(volume), plane), to_slices(slab.of(region), plane).to(volume.device)
    controls = None if control is None else to_slices(slab.of(control), plane).to(volume.device)
    return Stack(volume, slab, slices, masks, plane, touched(masks), window, pixel_mm, prompt, seed, controls, channels, slice_mm)


def cut_patch(
    stack: Stack, square: Square, soft_width_px: float, soft_mode: str, resample: str = "bilinear", channel: ShownChannel | None = None
) -> Patch:
    """Crop one square of a slice, its mask and its control to the model's size.

    Args:
        stack: the slices.
        square: slice, position and mask.
        soft_width_px: standard deviation of the soft edge in pixels of the slice.
        soft_mode: see ``monai_diffaug.masks.soft_edge.soft_mask``.
        resample: of the image, see ``monai_diffaug.geometry.roi.resize``; masks and control are always bilinear.
        channel: the channel that the model sees; None shows a grey or colour picture.
    """
    row, roi, size, mask, part = square
    soft = soft_mask(mask, soft_width_px, soft_mode)
    window = stack.window if channel is None else channel.window
    image = resize(window.to_model(square_from(shown_channels(stack.slices[row], channel), roi)), size, resample).expand(3, -1, -1)
    weights = crop(soft[None], roi, size)
    shrunk = roi.side > size
    core = _support(crop((mask != 0).float()[None], roi, size), 0.5, shrunk)
    hard = core if soft_width_px == 0 else _support(weights, VISIBLE, shrunk)
    control = None if stack.control is None else crop(stack.control[row].float(), roi, size).clamp(0, 1).expand(3, -1, -1)
    return Patch(row, stack.slab.first + row, roi, soft, image, core, hard, weights, control, part, channel)


def shown_channels(image: Tensor, channel: ShownChannel | None) -> Tensor:
    """View of the channels of a slice (C, h, w) that the model sees: one of them, or all of a grey or colour picture."""
    return image if channel is None else image[channel.index : channel.index + 1]


def _support(weights: Tensor, threshold: float, shrunk: bool) -> Tensor:
    """Pixels whose weight exceeds a threshold; a lesion thinner than a pixel of the model keeps all pixels that it touches.

    In a slice that was ``shrunk`` each lesion is treated alone: a small one far from a large one is kept.
    """
    above = weights > threshold
    near = F.max_pool2d(above.float(), 2 * RIM_PX + 1, 1, RIM_PX) > 0 if shrunk else above.any()
    return (above | (weights > 0) & ~near).float()


def put_back(stack: Stack, patches: list[Patch], pictures: Tensor, resample: str = "bilinear") -> Tensor:
    """The volume with pictures (P, 3, size, size) composited in: (C, H, W[, D]), bit-identical outside the soft masks.

    Under the soft edge around a mask, intensities beyond the window are added to the picture: bone stays bone in a soft tissue window.

    Args:
        stack: the slices.
        patches: the squares, one per picture.
        pictures: in [-1, 1].
        resample: of the pictures, see ``monai_diffaug.geometry.roi.resize``.
    """
    result = stack.slices.clone()
    for patch, picture in zip(patches, pictures, strict=True):
        picture = picture.to(result.device).clamp(-1, 1)
        image = shown_channels(result[patch.row], patch.channel)
        window = stack.window if patch.channel is None else patch.channel.window
        if image.shape[0] == 1:
            picture = picture.mean(0, keepdim=True)
        hidden = window.beyond(image.float()) * (stack.masks[patch.row] == 0)
        canvas = paste(image.float() - hidden, window.to_image(picture), patch.roi, resample) + hidden
        image.copy_(composite(image, canvas, patch.soft[None]))
    volume = stack.volume.clone(memory_format=torch.contiguous_format)
    stack.slab.of(volume).copy_(from_slices(result, stack.plane))
    return volume
