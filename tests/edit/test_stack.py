from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_diffaug.edit.stack import Stack, cut_patch, open_stack, put_back
from monai_diffaug.geometry.roi import roi_around
from monai_diffaug.geometry.slices import slab_of
from monai_diffaug.geometry.squares import Square
from monai_diffaug.geometry.window import Window

SIZE_PX = 64


def stack_of(image: Tensor, mask: Tensor, window: Window) -> Stack:
    return open_stack(image, mask, None, slab_of(mask, None), window, prompt=((1.0, "mass"),), seed=0)


def square(mask: Tensor, size: int) -> Square:
    return Square(0, roi_around(mask[0], size), size, mask[0])


@pytest.mark.parametrize("soft_width_px", [0.0, 4.0])
def test_a_lesion_of_three_pixels_survives_next_to_a_large_one_far_away(soft_width_px: float) -> None:
    mask = torch.zeros(1, 512, 512)
    mask[:, 30:90, 30:90] = 1
    mask[:, 470:473, 470:473] = 1
    stack = stack_of(torch.rand(1, 512, 512), mask, Window(0, 1))
    patch = cut_patch(stack, square(mask, SIZE_PX), soft_width_px, "grow")
    assert 1 <= int(patch.core[0, 40:, 40:].sum()) <= 4 and bool(patch.hard[0, 40:, 40:].any())
    assert int(patch.core[0, :40, :40].sum()) == pytest.approx((60 / 512 * SIZE_PX) ** 2, abs=8)


def test_intensities_beyond_the_window_stay_around_the_mask_and_go_inside_it() -> None:
    image = torch.full((1, 96, 96), 40.0)
    image[..., 40:] = 1000.0  # bone in a soft tissue window, half of it masked
    mask = torch.zeros(1, 96, 96)
    mask[:, 30:60, 20:50] = 1
    stack = stack_of(image, mask, Window(-160, 240))
    patch = cut_patch(stack, square(mask, 60), 3.0, "grow")
    result = put_back(stack, [patch], patch.image[None])  # a picture of what the model was shown
    outside = mask == 0
    assert float((result - image)[outside].abs().max()) < 1e-3
    assert float(result[0, 45, 49]) == pytest.approx(240)


def test_bicubic_patches_keep_texture_that_bilinear_ones_lose_and_touch_nothing_else() -> None:
    image = torch.rand(1, 96, 96, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 96, 96)
    mask[:, 30:60, 30:60] = 1
    stack = stack_of(image, mask, Window(0, 1))
    kept = {}
    for resample in ("bilinear", "bicubic"):
        patch = cut_patch(stack, square(mask, 96), 2.0, "grow", resample)
        result = put_back(stack, [patch], patch.image[None], resample)
        outside = patch.soft[None] == 0
        assert torch.equal(result[outside], image[outside]) and not torch.equal(result, image)
        kept[resample] = float(result[mask > 0].std() / image[mask > 0].std())
    assert 1.2 * kept["bilinear"] < kept["bicubic"] < 1
