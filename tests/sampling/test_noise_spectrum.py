from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.sampling.noise_spectrum import LAG_PX, LAG_SLICES, NoiseSpectrum, homogeneous, measure_noise, missing_noise, noise_fields


def blurred_noise(sd: float, slices: int = 12, side: int = 96, seed: int = 0) -> Tensor:
    """(S, 1, side, side) noise that is correlated in the plane and across slices."""
    white = torch.randn(1, 1, slices + 2, side + 2, side + 2, generator=torch.Generator().manual_seed(seed))
    kernel = torch.tensor([0.25, 1.0, 0.25])
    blurred = F.conv3d(white, torch.einsum("i,j,k->ijk", kernel, kernel, kernel)[None, None])[0, 0][:, None]
    return blurred * sd / blurred.std()


def everywhere(slices: Tensor) -> Tensor:
    return torch.ones(len(slices), *slices.shape[-2:], dtype=torch.bool)


def correlations(spectrum: NoiseSpectrum) -> list[float]:
    """To the next pixel of a row and of a column, and to the next slice."""
    middle = spectrum.covariance[LAG_SLICES, LAG_PX, LAG_PX]
    lags = (LAG_SLICES, LAG_PX, LAG_PX + 1), (LAG_SLICES, LAG_PX + 1, LAG_PX), (LAG_SLICES + 1, LAG_PX, LAG_PX)
    return [float(spectrum.covariance[lag] / middle) for lag in lags]


def test_level_and_correlations_are_measured_and_drawn_again() -> None:
    noise = blurred_noise(12.0)
    measured = measure_noise(noise, everywhere(noise))
    assert measured.sd == pytest.approx(12.0, rel=0.08)
    assert correlations(measured) == pytest.approx([2 * 0.25 / 1.125] * 3, abs=0.08)
    fields = noise_fields(measured, 3, range(len(noise)), (96, 96))
    again = measure_noise(fields, everywhere(fields))
    assert again.sd == pytest.approx(measured.sd, rel=0.06)
    assert correlations(again) == pytest.approx(correlations(measured), abs=0.06)


def test_edges_and_structured_organs_are_no_homogeneous_place_and_outliers_do_not_count() -> None:
    noise = blurred_noise(5.0, slices=3)
    image = noise.clone()
    image[..., 48:] = 90 * torch.rand(3, 1, 96, 48, generator=torch.Generator().manual_seed(1))
    image[..., 24:] += 300  # an edge
    quiet = homogeneous(image, everywhere(image))
    assert bool(quiet[..., :18].float().mean() > 0.5) and not bool(quiet[..., 21:27].any()) and not bool(quiet[..., 48:].any())
    image[:, :, ::17, 5] += 500  # bright vessels, also in the quiet part
    assert measure_noise(image, quiet).sd == pytest.approx(5.0, rel=0.15)


def test_pixels_elsewhere_have_no_influence() -> None:
    noise = blurred_noise(5.0, slices=2)
    where = everywhere(noise)
    where[..., 40:] = False
    other = noise.clone()
    other[..., 40:] = 1000
    first, second = measure_noise(noise, where), measure_noise(other, where)
    assert torch.allclose(first.covariance, second.covariance) and first.n == second.n


def test_what_is_missing_and_what_is_there_make_the_whole() -> None:
    fine, whole = blurred_noise(3.0), blurred_noise(10.0, seed=1)
    there = measure_noise(fine, everywhere(fine), robust=False)
    wanted = measure_noise(whole, everywhere(whole))
    added = noise_fields(missing_noise(there, wanted), 5, range(len(fine)), (96, 96))
    result = measure_noise(fine + added, everywhere(fine))
    assert result.sd == pytest.approx(wanted.sd, rel=0.06)
    assert missing_noise(wanted, there).sd < 0.2 * there.sd  # more than enough is there: nothing is missing


def test_a_slice_depends_on_seed_and_position_alone() -> None:
    spectrum = measure_noise(blurred_noise(4.0), everywhere(blurred_noise(4.0)))
    fields = noise_fields(spectrum, 9, [3, 4, 5], (40, 50))
    assert torch.equal(fields[1:], noise_fields(spectrum, 9, [4, 5], (40, 50)))
    assert not torch.equal(fields, noise_fields(spectrum, 10, [3, 4, 5], (40, 50)))
    torch.manual_seed(1)
    assert torch.equal(fields, noise_fields(spectrum, 9, [3, 4, 5], (40, 50)))


def test_grey_pictures_in_three_channels_get_grey_noise_and_colours_their_own() -> None:
    grey = blurred_noise(4.0).expand(-1, 3, -1, -1)
    fields = noise_fields(measure_noise(grey, everywhere(grey)), 0, [0], (64, 64))
    assert torch.allclose(fields[:, 0], fields[:, 2], atol=1e-3) and float(fields.std()) == pytest.approx(4, rel=0.1)
    colour = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 6.0])[:, None, None]
    fields = noise_fields(measure_noise(colour, everywhere(colour)), 0, range(4), (64, 64))
    assert fields.std((0, 2, 3)).tolist() == pytest.approx([1, 2, 6], rel=0.1)
