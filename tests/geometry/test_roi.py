from __future__ import annotations

import pytest
import torch

from monai_diffaug.geometry.roi import Roi, crop, paste, resize, roi_around


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


@pytest.mark.parametrize(("extent", "side"), [(30, 60), (54, 128), (80, 128), (100, 150), (140, 210)])
def test_least_context_reduces_only_squares_that_are_larger_than_the_model(extent: int, side: int) -> None:
    mask = box_mask(400, 400, 120, 120, extent, 10)
    assert roi_around(mask, 128, least_context=1.5).side == side
    assert roi_around(mask, 128).side == (128 if extent == 54 else 2 * extent)


def test_least_context_leaves_room_for_the_soft_edge_and_never_adds_context() -> None:
    mask = box_mask(400, 400, 120, 120, 100, 10)
    assert roi_around(mask, 128, least_side=lambda extent: extent + 80, least_context=1.5).side == 180
    assert roi_around(mask, 128, 1.6, least_context=1.9).side == 160


def test_bicubic_keeps_more_fine_texture_there_and_back_within_the_range_of_the_pixels() -> None:
    texture = torch.rand(1, 96, 96, generator=torch.Generator().manual_seed(0))
    smooth, sharp = (resize(resize(texture, 128, mode), 96, mode) for mode in ("bilinear", "bicubic"))
    assert 1.2 * float(smooth.std()) < float(sharp.std()) < float(texture.std())
    assert texture.min() <= sharp.min() and sharp.max() <= texture.max()
    assert torch.equal(resize(texture, 96, "bicubic"), texture)
