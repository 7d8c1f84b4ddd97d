"""Painted slices joined along the slicing axis: their low frequencies become a running mean, so that no slice stands out."""

from __future__ import annotations

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor

from monai_diffaug.edit.stack import Patch, ShownChannel, Stack, shown_channels
from monai_diffaug.geometry.roi import extent_of
from monai_diffaug.geometry.slices import from_slices, to_slices
from monai_diffaug.masks.soft_edge import composite
from monai_diffaug.sampling.coherent_noise import PLANE_SHARE, SLICE_SHARE

__all__ = ["join_slices", "rows_and_columns", "soft_weights"]

REACH = 4.0  # radius of the Gaussian of the plane in standard deviations


def join_slices(stack: Stack, patches: list[Patch], volume: Tensor, length_mm: float) -> Tensor:
    """The edited volume (C, H, W, D) with its painted slices joined; bit-identical outside the soft masks, and a 2-D image throughout.

    L is each slice after a Gaussian of ``length_mm`` / 4 in the plane, M the mean of L over the slices with a Gaussian of
    ``length_mm`` / 2, both over painted pixels only. A slice becomes slice + M - L: structures longer than ``length_mm`` are shared
    with its neighbours, and its fine texture remains.

    Args:
        stack: the original slices.
        patches: the squares with their soft masks.
        volume: after ``put_back``.
        length_mm: > 0.
    """
    if stack.plane is None:
        return volume
    slices = to_slices(stack.slab.of(volume), stack.plane).clone()
    distance = torch.arange(len(slices), dtype=torch.float32, device=slices.device) * stack.slice_mm
    across = torch.exp(-0.5 * ((distance[:, None] - distance) / (SLICE_SHARE * length_mm)).square())
    sigma = torch.tensor(PLANE_SHARE * length_mm / stack.pixel_mm, dtype=torch.float32, device=slices.device)
    kernel = gaussian_1d(sigma, truncated=REACH)

    def smooth(images: Tensor) -> Tensor:
        return separable_filtering(images, [kernel, kernel], mode="zeros")

    for channel in stack.channels or (None,):
        soft = soft_weights(stack, patches, channel)
        near = rows_and_columns(soft.amax(0), 0)
        weights = soft[(slice(None), *near)][:, None]
        painted = torch.stack([shown_channels(image, channel) for image in slices])[(..., *near)]
        low = smooth(painted.float() * weights) / smooth(weights).clamp_min(1e-6)
        mean = torch.einsum("st,tchw->schw", across, low * weights) / torch.einsum("st,tchw->schw", across, weights).clamp_min(1e-6)
        joined = composite(painted, painted.float() + mean - low, weights)
        for image, part in zip(slices, joined, strict=True):
            shown_channels(image, channel)[(..., *near)] = part
    edited = volume.clone(memory_format=torch.contiguous_format)
    stack.slab.of(edited).copy_(from_slices(slices, stack.plane))
    return edited


def soft_weights(stack: Stack, patches: list[Patch], channel: ShownChannel | None = None) -> Tensor:
    """(S, h, w) float32: the soft masks of the patches of a channel on the slices of a stack."""
    weights = torch.zeros(stack.masks.shape[0], *stack.masks.shape[-2:], dtype=torch.float32, device=stack.slices.device)
    for patch in patches:
        if patch.channel == channel:
            weights[patch.row] = torch.maximum(weights[patch.row], patch.soft.to(weights))
    return weights


def rows_and_columns(region: Tensor, reach: int) -> tuple[slice, slice]:
    """Rows and columns of (h, w) within ``reach`` pixels of the region, which is not empty."""
    extent = extent_of(region)
    return slice(max(extent.top - reach, 0), extent.bottom + reach + 1), slice(max(extent.left - reach, 0), extent.right + reach + 1)
