from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_diffaug.edit.joined_slices import join_slices
from monai_diffaug.edit.stack import Patch, Stack, cut_patch, open_stack
from monai_diffaug.geometry.roi import roi_around
from monai_diffaug.geometry.slices import slab_of, slice_plane
from monai_diffaug.geometry.squares import Square
from monai_diffaug.geometry.window import Window


def edit_of(image: Tensor) -> tuple[Stack, list[Patch], Tensor]:
    mask = torch.zeros(1, *image.shape[1:])
    mask[(..., *(slice(8, 32),) * 2, *(slice(2, 10),) * (image.ndim - 3))] = 1
    plane = slice_plane(None, "axial", image.ndim - 1)
    stack = open_stack(image, mask, plane, slab_of(mask, plane), Window(0, 200), prompt=((1.0, "mass"),), seed=5)
    squares = (Square(row, roi_around(stack.masks[row, 0], 64), 64, stack.masks[row, 0]) for row in stack.indices)
    return stack, [cut_patch(stack, square, 0.0, "grow") for square in squares], mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_slices_of_different_brightness_are_joined_and_their_fine_texture_remains(dtype: torch.dtype) -> None:
    image = torch.full((1, 40, 40, 12), 50.0).to(dtype)
    stack, patches, mask = edit_of(image)
    inside = (mask > 0).expand_as(image)
    generator = torch.Generator().manual_seed(0)
    texture = 20 * torch.randn(1, 40, 40, 12, generator=generator)
    offsets = 20.0 * (torch.arange(12) % 2) + 90
    edited = torch.where(inside, (texture + offsets).to(dtype), image)
    joined = join_slices(stack, patches, edited, 8.0)
    assert joined.dtype == dtype and torch.equal(joined[~inside], image[~inside])
    means = [part[:, 8:32, 8:32, 2:10].float().mean((0, 1, 2)) for part in (edited, joined)]
    assert float(means[0].diff().abs().mean()) > 15 and float(means[1].diff().abs().mean()) < 4
    fine = [part[:, 8:32, 8:32, 2:10].float().diff(dim=1).std() for part in (edited, joined)]
    assert float(fine[1]) == pytest.approx(float(fine[0]), rel=0.1)


def test_the_ends_of_a_lesion_keep_their_contrast() -> None:
    image = torch.full((1, 40, 40, 12), 50.0)
    stack, patches, mask = edit_of(image)
    edited = torch.where(mask > 0, 120.0, image)
    assert torch.allclose(join_slices(stack, patches, edited, 8.0), edited, atol=1e-3)


def test_millimetres_follow_the_distance_of_the_slices() -> None:
    image = torch.full((1, 40, 40, 12), 50.0)
    stack, patches, mask = edit_of(image)
    edited = torch.where(mask > 0, 90.0 + 20 * (torch.arange(12) % 2), image)
    thin, thick = (join_slices(stack._replace(slice_mm=slice_mm), patches, edited, 4.0) for slice_mm in (1.0, 20.0))
    assert torch.allclose(thick, edited, atol=0.1) and not torch.allclose(thin, edited, atol=5)


def test_a_picture_stays_as_it_is() -> None:
    image = torch.full((1, 40, 40), 50.0)
    stack, patches, _ = edit_of(image)
    assert join_slices(stack, patches, image, 8.0) is image
