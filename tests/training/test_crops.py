from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_diffaug.training.crops import blurred, crop_squares, cut_square, grown, square_around

IMAGE = torch.rand(1, 1, 64, 64)
CENTRE = torch.tensor([[31.5, 31.5]])


def test_the_whole_image_at_its_own_size_is_smoothed_but_not_moved() -> None:
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    assert torch.allclose(crop_squares(ramp, CENTRE, torch.tensor([64.0]), 64)[..., 1:-1], ramp[..., 1:-1], atol=1e-3)


def test_a_flip_mirrors_and_a_quarter_turn_turns() -> None:
    plain = crop_squares(IMAGE, CENTRE, torch.tensor([64.0]), 64)
    flipped = crop_squares(IMAGE, CENTRE, torch.tensor([64.0]), 64, flips=torch.tensor([True]))
    turned = crop_squares(IMAGE, CENTRE, torch.tensor([64.0]), 64, angles=torch.tensor([math.pi / 2]))
    assert torch.allclose(flipped, plain.flip(-1), atol=1e-5)
    assert torch.allclose(turned, torch.rot90(plain, 1, (-2, -1)), atol=1e-4)


def disc(size: int = 96, radius: float = 12.0, centre: tuple[int, int] = (40, 55)) -> np.ndarray:
    ys, xs = np.indices((size, size))
    return np.hypot(ys - centre[0], xs - centre[1]) < radius


def test_a_drawn_square_holds_the_whole_mask_and_some_of_its_surroundings() -> None:
    mask, rng = disc(), np.random.RandomState(0)
    for _ in range(50):
        (y, x), side = square_around(rng, mask, 96)
        assert 1.5 * 23 <= side <= 2.6 * 23
        assert abs(y - 40) <= (side - 23) / 4 and abs(x - 55) <= (side - 23) / 4


def test_a_square_is_no_longer_than_the_image_unless_the_mask_is() -> None:
    rng = np.random.RandomState(0)
    assert {square_around(rng, disc(radius=40.0, centre=(48, 48)), 96)[1] for _ in range(20)} == {96.0}
    assert square_around(rng, np.ones((10, 90), bool), 50)[1] == 90
    assert square_around(rng, disc(), 96, side_px=10)[1] == 10


def test_cutting_keeps_image_and_mask_together() -> None:
    mask, rng = disc(), np.random.RandomState(0)
    stacked = torch.from_numpy(np.stack([mask] * 4)).float()
    for _ in range(10):
        image, coverage = cut_square(rng, stacked, np.array([40.0, 55.0]), 50.0, 32)
        assert image.shape == (3, 32, 32) and coverage.shape == (1, 32, 32)
        assert float((image[:1] - coverage).abs().mean()) < 0.02  # equal but for the gamma at the rim


def test_a_large_square_is_averaged_not_sampled() -> None:
    stripes = torch.ones(4, 800, 800)
    stripes[:3, :, ::2] = 0
    image, _ = cut_square(np.random.RandomState(0), stripes, np.array([400.0, 400.0]), 700.0, 32)
    assert float(image.std()) < 0.05


def test_a_grown_mask_is_wider_by_the_radius() -> None:
    mask = torch.zeros(1, 9, 9)
    mask[0, 4, 4] = 1
    assert torch.equal(grown(mask, 0), mask) and float(grown(mask, 2).sum()) == 25


def test_masks_are_cut_together_with_the_image() -> None:
    mask, rng = disc(), np.random.RandomState(0)
    stacked = torch.from_numpy(np.stack([mask] * 3 + [mask, ~mask])).float()
    _, masks = cut_square(rng, stacked, np.array([40.0, 55.0]), 50.0, 32)
    assert masks.shape == (2, 32, 32) and torch.allclose(masks[0], 1 - masks[1], atol=1e-5) and 0.1 < float(masks[0].mean()) < 0.4


def test_blurring_keeps_the_mean_of_a_flat_image_and_lowers_the_contrast_of_a_point() -> None:
    flat, point = torch.full((1, 3, 16, 16), 0.3), torch.zeros(1, 1, 17, 17)
    point[..., 8, 8] = 1
    assert torch.allclose(blurred(flat, 1.5), flat, atol=1e-6)
    assert float(blurred(point, 1.0).max()) < 0.2 and float(blurred(point, 1.0).sum()) == pytest.approx(1, abs=1e-4)
