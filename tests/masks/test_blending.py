from __future__ import annotations

import numpy as np
import pytest

from monai_diffaug.masks.blending import join, match_rim, match_spread


def region(slices: int = 1) -> np.ndarray:
    inside = np.zeros((slices, 24, 24), bool)
    inside[:, 6:18, 6:18] = True
    return inside


def test_the_join_is_continuous_and_keeps_the_gradients() -> None:
    rng = np.random.RandomState(0)
    ys, xs = np.indices((24, 24))
    image = (100 + 2 * xs + 3 * ys)[None, None].astype(np.float32)
    pixels = (20 * (np.hypot(ys - 12, xs - 12) < 4) + rng.rand(24, 24))[None, None].astype(np.float32)
    joined = join(pixels, image, region(), (1.0, 1.0, 1.0))
    difference = joined - pixels
    assert np.allclose(difference[0, 0, 12, 12], image[0, 0, 12, 12] - pixels.mean(), atol=6)  # a smooth ramp was added
    inner = difference[0, 0, 7:17, 7:17]
    laplacian = inner[2:, 1:-1] + inner[:-2, 1:-1] + inner[1:-1, 2:] + inner[1:-1, :-2] - 4 * inner[1:-1, 1:-1]
    assert np.abs(laplacian).max() < 0.05
    edge = np.abs(joined[0, 0, 6, 6:18] - image[0, 0, 5, 6:18])
    assert edge.max() < 6 and np.array_equal(joined[0, 0, 0], pixels[0, 0, 0])


def test_pixels_that_differ_by_a_constant_become_the_image() -> None:
    image = np.random.RandomState(0).rand(3, 4, 24, 24).astype(np.float32) * 100
    joined = join(image - 40, image, region(4), (3.0, 1.0, 1.0))
    assert np.abs((joined - image)[:, region(4)]).max() < 0.05


def test_distant_slices_bind_less() -> None:
    inside = np.zeros((3, 24, 24), bool)
    inside[1, 6:18, 6:18] = True
    image = np.zeros((1, 3, 24, 24), np.float32)
    image[:, [0, 2]] = 100
    near, far = (join(np.zeros_like(image), image, inside, (mm, 1.0, 1.0))[0, 1, 12, 12] for mm in (1.0, 10.0))
    assert 90 < near <= 100 and far < 45


def test_a_region_that_fills_the_array_changes_nothing() -> None:
    pixels = np.ones((1, 1, 4, 4), np.float32)
    assert np.array_equal(join(pixels, pixels * 9, np.ones((1, 4, 4), bool), (1.0, 1.0, 1.0)), pixels)


def test_black_stays_black_and_the_surround_meets_the_new_one() -> None:
    pixels = np.array([[0.0, 30.0, 60.0, 255.0]], np.float32)
    assert np.allclose(match_rim(pixels, (60.0,), (90.0,), (0, 255), (0, 255)), [[0, 45, 90, 255]], atol=1e-3)
    hounsfield = np.array([[-20.0, 40.0]], np.float32)
    assert np.allclose(match_rim(hounsfield, (40.0,), (60.0,), (-1000, 800), (-1000, 800)), [[-1.2, 60]], atol=0.1)


def test_the_contrast_is_never_doubled_more_than_once_or_more_than_halved() -> None:
    pixels = np.array([[0.0, 20.0]], np.float32)
    assert match_rim(pixels, (20.0,), (200.0,), (0, 255), (0, 255))[0].tolist() == [160, 200]
    assert match_spread(pixels, ((20.0, 1.0),), ((20.0, 100.0),))[0].tolist() == [-20, 20]
    assert match_spread(pixels, ((20.0, 0.0),), ((30.0, 5.0),))[0].tolist() == [10, 30]


def test_channels_are_matched_one_by_one() -> None:
    pixels = np.full((3, 2, 2), 50, np.float32)
    matched = match_rim(pixels, (50.0, 50.0, 50.0), (60.0, 70.0, 80.0), (0, 255), (0, 255))
    assert matched[:, 0, 0].tolist() == pytest.approx([60, 70, 80])
