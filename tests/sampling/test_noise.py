from __future__ import annotations

import pytest
import torch

from monai_diffaug.sampling.noise import slice_noise


def test_rho_zero_is_independent_noise() -> None:
    noise = slice_noise(1, list(range(20)), (4, 16, 16))
    assert abs(float(torch.corrcoef(noise[:2].flatten(1))[0, 1])) < 0.1


@pytest.mark.parametrize("rho", [0.3, 0.9, 1.0])
def test_correlated_noise_keeps_unit_variance_and_has_the_asked_correlation(rho: float) -> None:
    noise = slice_noise(1, list(range(12)), (4, 48, 48), rho)
    assert noise[-1].var().item() == pytest.approx(1.0, abs=0.05)
    assert float(torch.corrcoef(noise[4:6].flatten(1))[0, 1]) == pytest.approx(rho, abs=0.03)


def test_noise_of_a_slice_does_not_depend_on_its_batch() -> None:
    whole = slice_noise(9, [2, 3, 4], (4, 8, 8))
    assert torch.equal(whole[1:], slice_noise(9, [3, 4], (4, 8, 8)))


def test_a_rho_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_rho"):
        slice_noise(0, [0], (1,), 1.5)
