from __future__ import annotations

import math

import torch

from monai_diffaug.training.crops import crop_squares

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
