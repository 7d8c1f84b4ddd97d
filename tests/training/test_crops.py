from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_diffaug.training.crops import captioned_crop, crop_squares, cut_square, grown, square_around
from monai_diffaug.training.embedded.datasets import Sample, Source

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


def sample(label: np.ndarray, brightness: int = 200) -> Sample:
    grey = np.where(label > 0, brightness, 90).astype(np.uint8)
    return Sample(Source("made_up", "ultrasound", "breast", {1: "benign mass"}), 0, 0, np.repeat(grey[..., None], 3, -1), label, "")


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


def test_a_lesion_is_described_by_what_is_measured_and_normal_tissue_is_not() -> None:
    label, rng = disc().astype(np.uint8), np.random.RandomState(0)
    text = " ".join(captioned_crop(rng, sample(label), label > 0, "benign mass", 48).text for _ in range(20))
    assert "benign mass" in text and "hyperechoic" in text and "hypoechoic" not in text
    normal = captioned_crop(rng, sample(0 * label), label > 0, "normal tissue", 48)
    assert "normal tissue" in normal.text and "echoic" not in normal.text
    assert normal.mask.unique().tolist() == [0.0, 1.0] and float(normal.image.abs().max()) <= 1


def test_the_draws_of_a_seed_stay_as_they_are() -> None:
    """Banks of encoded crops are made again from their seed."""
    label, rng = disc().astype(np.uint8), np.random.RandomState(5)
    crops = [captioned_crop(rng, sample(label), label > 0, "benign mass", 32) for _ in range(3)]
    crops.append(captioned_crop(rng, sample(label), label > 0, "benign mass", 32, side_px=70.0))
    assert [float(crop.mask.sum()) for crop in crops] == [275.0, 148.0, 328.0, 89.0]
    assert [float(crop.image.mean()) for crop in crops] == pytest.approx([-0.0959, -0.0407, -0.036, -0.2664], abs=2e-4)
    assert crops[-1].text == "ultrasound of breast, benign mass, round"


def test_a_grown_mask_is_wider_by_the_radius() -> None:
    mask = torch.zeros(1, 9, 9)
    mask[0, 4, 4] = 1
    assert torch.equal(grown(mask, 0), mask) and float(grown(mask, 2).sum()) == 25
