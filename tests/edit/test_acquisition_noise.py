from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from monai_diffaug.edit.acquisition_noise import add_acquisition_noise
from monai_diffaug.edit.stack import Patch, ShownChannel, Stack, cut_patch, open_stack
from monai_diffaug.geometry.roi import roi_around
from monai_diffaug.geometry.slices import from_slices, slab_of, slice_plane, to_slices
from monai_diffaug.geometry.squares import Square
from monai_diffaug.geometry.window import Window

SD = 10.0


def scan(*size: int, channels: int = 1) -> Tensor:
    image = 40 + SD * torch.randn(channels, *size, generator=torch.Generator().manual_seed(0))
    image[:, 0, 0], image[:, 0, 1] = -500, 500  # air and bone: the range of the scan
    return image


def edit_of(image: Tensor, soft_px: float = 2.0, **stack_options: Any) -> tuple[Stack, list[Patch], Tensor, Tensor]:
    """Stack, patches, an edit that painted the mask flat, and the mask."""
    mask = torch.zeros(1, *image.shape[1:])
    mask[(..., *(slice(24, 60),) * 2, *(slice(3, 9),) * (image.ndim - 3))] = 1
    plane = slice_plane(None, "axial", image.ndim - 1)
    slab = slab_of(mask, plane)
    stack = open_stack(image, mask, plane, slab, Window(-160, 240), prompt=((1.0, "mass"),), seed=5, **stack_options)
    squares = (Square(row, roi_around(stack.masks[row, 0], 96), 96, stack.masks[row, 0]) for row in stack.indices)
    patches = [cut_patch(stack, square, soft_px, "grow", channel=channel) for square in squares for channel in stack.channels or (None,)]
    slices = to_slices(image.float(), plane).clone()
    for patch in patches:
        part = slices[patch.position] if patch.channel is None else slices[patch.position, patch.channel.index]
        part.copy_(torch.lerp(part, torch.full_like(part, 90), patch.soft))
    edited = from_slices(slices, plane)
    return stack, patches, (edited if image.dtype.is_floating_point else edited.round()).to(image.dtype), mask


def soft_of(stack: Stack, patches: list[Patch], image: Tensor) -> Tensor:
    """True where the edit may change the image."""
    slices = torch.zeros_like(to_slices(image, stack.plane), dtype=torch.bool)
    for patch in patches:
        slices[patch.position] |= patch.soft > 0
    return from_slices(slices, stack.plane)


@pytest.mark.parametrize("size", [(96, 96), (96, 96, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_flat_lesion_gets_the_noise_of_its_surround_and_nothing_else_changes(size: tuple[int, ...], channels: int) -> None:
    stack, patches, edited, mask = edit_of(scan(*size, channels=channels))
    noisy = add_acquisition_noise(stack, patches, edited)
    inside = (mask > 0).expand_as(noisy)
    assert float(edited[inside].std()) < 0.1 and float(noisy[inside].std()) == pytest.approx(SD, rel=0.15)
    assert float(noisy[inside].mean()) == pytest.approx(90, abs=1)
    soft = soft_of(stack, patches, edited)
    assert torch.equal(noisy[~soft], edited[~soft]) and bool((noisy != edited)[soft & ~inside].any())


def test_integers_are_rounded_and_stay_within_the_range_of_the_scan() -> None:
    image = scan(96, 96).round().clamp(30, 95).to(torch.int16)
    stack, patches, edited, mask = edit_of(image)
    noisy = add_acquisition_noise(stack, patches, edited)
    assert noisy.dtype == torch.int16 and int(noisy.max()) <= int(image.max()) and int(noisy.min()) >= int(image.min())
    assert float(noisy[mask > 0].float().std()) > 3


def test_only_what_is_missing_is_added() -> None:
    stack, patches, edited, mask = edit_of(scan(96, 96))
    textured = edited + SD * torch.randn(edited.shape, generator=torch.Generator().manual_seed(9)) * (mask > 0)
    noisy = add_acquisition_noise(stack, patches, textured)
    assert float((noisy - textured)[mask > 0].std()) < 0.5 * SD
    assert float(noisy[mask > 0].std()) == pytest.approx(SD, rel=0.2)


def test_it_depends_on_the_seed_and_the_position_alone() -> None:
    stack, patches, edited, _ = edit_of(scan(96, 96, 12))
    first = add_acquisition_noise(stack, patches, edited)
    torch.manual_seed(3)
    assert torch.equal(add_acquisition_noise(stack, patches, edited), first)
    assert not torch.equal(add_acquisition_noise(stack._replace(seed=6), patches, edited), first)
    slices = first[0, 24:60, 24:60, 3:9].flatten(0, 1)
    assert float(torch.corrcoef(slices.T).fill_diagonal_(0).abs().max()) < 0.15  # the scan's slices are independent, so are these


def test_channels_that_are_repainted_one_by_one_have_their_own_noise_and_the_others_none() -> None:
    image = torch.cat([scan(96, 96), scan(96, 96).flip(1), scan(96, 96).flip(2)])
    channels = tuple(ShownChannel(index, Window(-160, 240), ((1.0, "mass"),)) for index in (0, 2))
    stack, patches, edited, mask = edit_of(image, channels=channels)
    noisy = add_acquisition_noise(stack, patches, edited)
    assert torch.equal(noisy[1], edited[1])
    first, second = (noisy[i][mask[0] > 0] for i in (0, 2))
    assert float(first.std()) == pytest.approx(SD, rel=0.15) and abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.1


def test_without_a_homogeneous_surround_nothing_is_added() -> None:
    image = torch.full((1, 96, 96), 1000.0)  # all of it beyond the window
    stack, patches, edited, _ = edit_of(image)
    assert torch.equal(add_acquisition_noise(stack, patches, edited), edited)
