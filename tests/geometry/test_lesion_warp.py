from __future__ import annotations

import numpy as np
import pytest

from monai_diffaug.geometry.lesion_warp import Warp, warp_lesion


def lesion(slices: int = 1, height: int = 11, width: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels, and a box of these sides in the middle of 41 x 41."""
    pixels = np.random.RandomState(0).randint(0, 255, (slices, 1, 41, 41)).astype(np.uint8)
    mask = np.zeros((slices, 41, 41), np.uint8)
    top, left = (41 - height) // 2, (41 - width) // 2
    mask[:, top : top + height, left : left + width] = 1
    return pixels, mask


def extent_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[float, ...]:
    return tuple((np.ptp(axis) + 1) * mm for axis, mm in zip(np.nonzero(mask), spacing_mm, strict=True))


def test_without_a_change_the_pixels_are_the_donor_s() -> None:
    pixels, mask = lesion(3, 10, 6)
    result = warp_lesion(pixels, mask, (1, 1, 1), (1, 1, 1), Warp())
    assert np.allclose(result.pixels[0][result.mask], pixels[:, 0][mask == 1], atol=1e-3)


def test_mirroring_resamples_nothing() -> None:
    pixels, mask = lesion(2, 10, 6)
    result = warp_lesion(pixels, mask, (1, 1, 1), (1, 1, 1), Warp(mirror=(False, True)))
    straight = warp_lesion(pixels, mask, (1, 1, 1), (1, 1, 1), Warp())
    assert np.allclose(result.pixels[0], straight.pixels[0][:, :, ::-1], atol=1e-3)
    flipped = warp_lesion(pixels, mask, (1, 1, 1), (1, 1, 1), Warp(mirror=(True, False)))
    assert np.allclose(flipped.pixels[0], straight.pixels[0][:, ::-1], atol=1e-3)


@pytest.mark.parametrize("target_mm", [(1.0, 1.0, 1.0), (5.0, 0.5, 0.8), (2.5, 2.0, 1.0)])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_the_size_in_mm_is_kept_on_every_grid(target_mm: tuple[float, float, float], scale: float) -> None:
    spacing_mm = (2.5, 1.0, 1.5)
    pixels, mask = lesion(6, 20, 12)
    result = warp_lesion(pixels, mask, spacing_mm, target_mm, Warp(scale=scale))
    before, after = extent_mm(mask == 1, spacing_mm), extent_mm(result.mask, target_mm)
    for old, new, mm in zip(before, after, target_mm, strict=True):
        assert abs(new - scale * old) <= mm + 1e-6


def test_the_order_of_the_slices_is_kept() -> None:
    pixels, mask = lesion(5)
    pixels[:] = (np.arange(5) * 50)[:, None, None, None]
    result = warp_lesion(pixels, mask, (4.0, 1.0, 1.0), (2.0, 1.0, 1.0), Warp(angle_deg=30, mirror=(True, True)))
    levels = [float(each[inside].mean()) for each, inside in zip(result.pixels[0], result.mask, strict=True)]
    assert len(levels) == 10 and levels == sorted(levels) and levels[0] < 20 < 180 < levels[-1]


def test_a_rotation_by_90_degrees_swaps_the_sides_in_mm() -> None:
    pixels, mask = lesion(1, 21, 9)
    result = warp_lesion(pixels, mask, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), Warp(angle_deg=90))
    assert extent_mm(result.mask, (1, 1, 1)) == (1, 9, 21)
    oblong = warp_lesion(pixels, mask, (1.0, 1.0, 2.0), (1.0, 1.0, 1.0), Warp(angle_deg=90))
    assert abs(extent_mm(oblong.mask, (1, 1, 1))[1] - 18) <= 1 and abs(extent_mm(oblong.mask, (1, 1, 1))[2] - 21) <= 1


def test_a_bend_moves_the_outline_and_keeps_the_lesion_in_one_piece() -> None:
    from scipy.ndimage import label

    pixels, mask = lesion(2, 21, 21)
    bend = np.random.RandomState(0).standard_normal((2, 5, 5)) * 0.05
    result = warp_lesion(pixels, mask, (1, 1, 1), (1, 1, 1), Warp(bend=bend))
    assert label(result.mask)[1] == 1 and 0.7 < result.mask.sum() / (mask == 1).sum() < 1.4
    assert not np.array_equal(result.mask, warp_lesion(pixels, mask, (1, 1, 1), (1, 1, 1), Warp()).mask)


def test_places_beyond_the_crop_and_other_labels_are_other() -> None:
    pixels, mask = lesion(1, 11, 7)
    mask[0, :, 30:] = 2
    cut = warp_lesion(pixels[..., 14:], mask[..., 14:], (1, 1, 1), (1, 1, 1), Warp(), margin_px=10)
    assert cut.other[0, 15].any() and not (cut.other & cut.mask).any()
    assert cut.other[0, :, 0].all()  # beyond the left side of the crop
    assert cut.other[0, :, -1].all()  # another label on the right


def test_a_tiny_lesion_on_a_coarse_grid_keeps_a_pixel() -> None:
    pixels, mask = lesion(1, 3, 3)
    result = warp_lesion(pixels, mask, (1, 1, 1), (8.0, 8.0, 8.0), Warp(scale=0.5))
    assert result.mask.sum() >= 1


def test_a_picture_gets_one_slice_whatever_the_scale_and_the_distance_of_slices() -> None:
    pixels, mask = lesion(1)
    assert warp_lesion(pixels, mask, (5.0, 1.0, 1.0), (1.0, 1.0, 1.0), Warp(scale=2.0), one_slice=True).mask.shape[0] == 1
