from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_diffaug.training.texture_loss import band_energies, texture_loss


def speckle(seed: int, size: int = 64) -> Tensor:
    grey = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 0.2
    return grey.expand(2, 3, size, size).clamp(-1, 1)


def blurred(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images, 3, 1, 1)


def test_other_speckle_of_the_same_strength_costs_little_and_blurred_speckle_much() -> None:
    target = speckle(0)
    assert texture_loss(target, target) == 0
    assert float(texture_loss(speckle(1), target)) < 0.35 < 1.0 < float(texture_loss(blurred(target), target))


def test_the_mean_error_prefers_what_this_loss_refuses() -> None:
    target, other = speckle(0), speckle(1)
    flat = torch.zeros_like(target)
    assert (flat - target).abs().mean() < (other - target).abs().mean()
    assert texture_loss(flat, target) > texture_loss(other, target)


def test_bands_of_a_known_wave() -> None:
    """A cosine of wavelength L keeps exp(-2 (pi sigma / L)^2) of its amplitude under a Gaussian."""
    period = 8
    wave = torch.cos(2 * torch.pi * torch.arange(64.0) / period).expand(1, 1, 64, 64)
    kept = [1.0, *(torch.exp(torch.tensor(-2 * (torch.pi * sigma / period) ** 2)).item() for sigma in (1.0, 2.0))]
    for energy, before, after in zip(band_energies(wave), kept, kept[1:], strict=False):
        assert energy.shape == (1, 1, 8, 8)
        assert energy[..., 2:-2, 2:-2].mean().item() == pytest.approx((before - after) ** 2 / 2, rel=0.03)


def test_colour_counts_a_tenth_and_grey_images_have_none() -> None:
    target = speckle(0)
    tinted = target.clone()
    tinted[:, 0] += speckle(2)[:, 0]
    tinted[:, 1] -= speckle(2)[:, 0]  # the brightness stays
    assert 0.1 < float(texture_loss(tinted, target)) < float(texture_loss(blurred(target), target))


def test_the_loss_is_the_same_under_autocast_and_has_a_finite_gradient_on_flat_images() -> None:
    target, decoded = speckle(0), torch.zeros(2, 3, 64, 64, requires_grad=True)
    outside = texture_loss(decoded, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(texture_loss(decoded, target), outside)
    outside.backward()
    assert bool(torch.isfinite(decoded.grad).all())
