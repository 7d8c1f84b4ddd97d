from __future__ import annotations

import pytest
import torch

from monai_diffaug.sampling.noise import local_noise, slice_noise


def test_rho_zero_is_independent_noise() -> None:
    noise = slice_noise(1, list(range(20)), (4, 16, 16))
    assert abs(float(torch.corrcoef(noise[:2].flatten(1))[0, 1])) < 0.1


@pytest.mark.parametrize("rho", [0.3, 0.9, 1.0])
def test_correlated_noise_has_unit_variance_and_correlation_rho(rho: float) -> None:
    noise = slice_noise(1, list(range(12)), (4, 48, 48), rho)
    assert noise[-1].var().item() == pytest.approx(1.0, abs=0.05)
    assert float(torch.corrcoef(noise[4:6].flatten(1))[0, 1]) == pytest.approx(rho, abs=0.03)


def test_noise_of_a_slice_does_not_depend_on_its_batch() -> None:
    whole = slice_noise(9, [2, 3, 4], (4, 8, 8))
    assert torch.equal(whole[1:], slice_noise(9, [3, 4], (4, 8, 8)))


def test_a_rho_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_rho"):
        slice_noise(0, [0], (1,), 1.5)


def test_local_noise_has_unit_variance_and_the_correlation_of_its_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    eps, eta = torch.randn(2, 1, 4, 96, 96, generator=generator)
    for scale in (0.0, 0.3, 0.8, 1.0):
        mixed = local_noise(eps, eta, scale_g=scale, mask=torch.ones(1, 1, 96, 96))
        assert mixed.var().item() == pytest.approx(1.0, abs=0.03)
        expected = (1 - scale**2) ** 0.5
        assert float(torch.corrcoef(torch.stack([mixed.flatten(), eps.flatten()]))[0, 1]) == pytest.approx(expected, abs=0.02)


def test_local_noise_does_not_change_the_noise_outside_the_mask_or_at_scale_zero() -> None:
    eps, eta = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(3, 1, 8, 8)
    mask[..., 2:5, 2:5] = 1
    mixed = local_noise(eps, eta, scale_g=0.7, mask=mask)
    outside = (mask == 0).expand_as(eps)
    assert torch.equal(mixed[outside], eps[outside]) and not torch.equal(mixed, eps)
    assert torch.equal(local_noise(eps, eta, scale_g=0.0, mask=mask), eps)
    assert torch.equal(local_noise(eps, eta, scale_g=1.0, mask=torch.ones(1)), eta)


def test_a_noise_scale_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_scale"):
        local_noise(torch.zeros(1), torch.zeros(1), scale_g=1.1, mask=torch.ones(1))


def test_noise_does_not_depend_on_torchs_default_dtype_and_device() -> None:
    expected = slice_noise(9, [2, 3], (4, 8, 8), 0.5)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        result = slice_noise(9, [2, 3], (4, 8, 8), 0.5)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(result, expected)
