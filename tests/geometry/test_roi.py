from __future__ import annotations

import pytest
import torch

from monai_diffaug.geometry.roi import Roi, crop, paste, roi_around


def box_mask(height: int, width: int, top: int, left: int, rows: int, columns: int) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[top : top + rows, left : left + columns] = 1
    return mask


@pytest.mark.parametrize("top", [0, 37, 97])
def test_a_3x3_lesion_is_enlarged_and_inside_its_square(top: int) -> None:
    mask = box_mask(100, 100, top, top, 3, 3)
    roi = roi_around(mask, 128)
    assert roi.side == 32
    assert crop(mask[None], roi, 128).gt(0.5).sum() >= 11 * 11


def test_the_square_contains_a_mask_that_is_larger_than_the_model_size() -> None:
    mask = box_mask(300, 200, 10, 5, 280, 190)
    roi = roi_around(mask, 128)
    assert roi.top <= 10 and roi.left <= 5
    assert roi.top + roi.side >= 290 and roi.left + roi.side >= 195


def test_a_side_close_to_the_model_size_is_not_resampled() -> None:
    mask = box_mask(256, 256, 100, 100, 62, 40)
    roi = roi_around(mask, 128)
    image = torch.rand(1, 256, 256)
    assert roi.side == 128
    assert torch.equal(paste(image, crop(image, roi, 128), roi), image)


def test_crop_beyond_the_border_repeats_it_and_paste_ignores_it() -> None:
    image = torch.rand(1, 20, 30)
    roi = Roi(-6, -1, 32)
    square = crop(image, roi, 32)
    assert torch.equal(square[0, 0, 1:31], image[0, 0])
    assert torch.equal(paste(torch.zeros_like(image), square, roi), image)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one non-zero pixel"):
        roi_around(torch.zeros(5, 5), 128)


def test_least_side_enlarges_the_square_up_to_the_image() -> None:
    mask = box_mask(300, 300, 140, 140, 20, 10)
    assert roi_around(mask, 128, least_side=lambda extent: extent + 59.2) == Roi(110, 105, 80)
    assert roi_around(mask, 128, least_side=lambda extent: 104.0).side == 128 != roi_around(mask, 128).side
    assert roi_around(mask, 128, least_side=lambda extent: 1e9).side == 300
