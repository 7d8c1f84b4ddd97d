from __future__ import annotations

import pytest
import torch

from monai_diffaug.masks.soft_edge import composite, soft_mask

MASK = torch.zeros(40, 40)
MASK[14:26, 14:26] = 1


def test_grow_is_one_inside_and_falls_off_outside_without_a_step() -> None:
    soft = soft_mask(MASK, 2.0, "grow")
    assert bool((soft[MASK > 0] == 1).all())
    profile = soft[5:15, 20]
    assert soft[20, 14 - 9] == 0 and bool((profile.diff() >= 0).all())
    assert profile[-1] == 1 and profile[-2] > 0.75 and float(profile.diff().max()) < 0.4


def test_inner_is_zero_outside() -> None:
    soft = soft_mask(MASK, 2.0, "inner")
    assert bool((soft[MASK == 0] == 0).all())
    assert soft[20, 20] > 0.9 and soft[14, 20] < 0.5


def test_centre_is_half_at_the_boundary() -> None:
    soft = soft_mask(MASK, 2.0, "centre")
    assert (soft[13, 20] + soft[14, 20]) / 2 == pytest.approx(0.5, abs=0.02)


def test_width_zero_keeps_the_mask_hard() -> None:
    assert torch.equal(soft_mask(MASK, 0.0), MASK)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64, torch.bool]
)
def test_voxels_with_weight_zero_are_bit_identical(dtype: torch.dtype) -> None:
    original = (torch.randn(1, 40, 40) * 90).to(dtype)
    soft = soft_mask(MASK, 2.0)
    result = composite(original, torch.full((1, 40, 40), 13.0), soft)
    assert result.dtype == dtype
    assert torch.equal(result[0][soft == 0], original[0][soft == 0])
    assert bool((result[0][soft == 1] == torch.tensor(13.0).to(dtype)).all())


def test_integers_are_rounded_and_clipped_not_truncated() -> None:
    ones = torch.ones(1, 1)
    assert composite(torch.zeros(1, 1, dtype=torch.uint8), torch.tensor([[254.6]]), ones) == 255
    assert composite(torch.zeros(1, 1, dtype=torch.uint8), torch.tensor([[300.0]]), ones) == 255
    assert composite(torch.zeros(1, 1, dtype=torch.int16), torch.tensor([[-1.7]]), ones) == -2


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="grow, inner, centre"):
        soft_mask(MASK, 1.0, "outer")


@pytest.mark.parametrize("mode", ["grow", "inner", "centre"])
def test_a_mask_at_the_image_border_has_no_soft_edge_there(mode: str) -> None:
    assert bool((soft_mask(torch.ones(40, 40), 2.0, mode) > 0.98).all())
    cut, whole = torch.zeros(20, 40), torch.zeros(40, 40)
    cut[:10, 15:25], whole[10:30, 15:25] = 1, 1
    assert torch.allclose(soft_mask(cut, 2.0, mode), soft_mask(whole, 2.0, mode)[20:], atol=1e-6)
