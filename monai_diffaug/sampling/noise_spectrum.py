"""The noise of a scanner: its level and spectrum, measured in a stack of slices, and fields of new noise that have them.

Noise is described by its autocovariance at small lags, in the plane and across slices. The Fourier transform of the autocovariance is the
power spectrum (Wiener-Khinchin), and spectra of independent noises add up: what a painted region lacks is the difference of two spectra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor

from monai_diffaug.sampling.seeding import slice_generators

__all__ = ["ACQUISITION_NOISE", "EDGE_NOISE", "NoiseSpectrum", "homogeneous", "measure_noise", "missing_noise", "noise_fields"]

ACQUISITION_NOISE, EDGE_NOISE = 3, 4  # ``purpose`` of the generators, see ``slice_generators``
LAG_PX, LAG_SLICES = 4, 2  # largest lags of the autocovariance
TAPER_PX = 3  # the covariances of the last lags fall to 0 over these, so that the spectrum does not ring
DETREND_PX = 3.0  # standard deviation of the Gaussian whose local mean is removed: slower variations belong to the tissue
LOCAL_PX = 2.0  # standard deviation of the Gaussian window of the local standard deviation
QUIET_SHARE, QUIET_FACTOR = 0.1, 1.25  # pixels below 1.25 times the 10 % quantile of the local standard deviation are homogeneous
OUTLIER, OF_TRIMMED_VARIANCE = 3.0, 0.9733  # a normal distribution cut at 3 standard deviations keeps this share of its variance
MAD_TO_SD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
GRID = (4 * LAG_SLICES + 1, 4 * LAG_PX + 1, 4 * LAG_PX + 1)  # the smallest for a spectrum of all lags
LEAST_PAIRS = 100  # pixel pairs behind a covariance; lags with fewer count as uncorrelated
REACH = 4.0  # radius of the Gaussian kernels in standard deviations


class NoiseSpectrum(NamedTuple):
    """Second moments of noise.

    Attributes:
        covariance: (2 LAG_SLICES + 1, 2 LAG_PX + 1, 2 LAG_PX + 1) autocovariance of the mean of the channels; lag 0 is in the middle.
        channels: (C, C) covariance of the channels.
        n: number of pixels that it was measured on.
    """

    covariance: Tensor
    channels: Tensor
    n: int

    @property
    def sd(self) -> float:
        """Standard deviation of the mean of the channels, in the unit of the image."""
        return math.sqrt(max(float(self.covariance[LAG_SLICES, LAG_PX, LAG_PX]), 0.0))


def homogeneous(slices: Tensor, candidates: Tensor) -> Tensor:
    """The candidates in the most homogeneous tenth of a stack, and all that are about as homogeneous: no edges, no organs with structure.

    The local standard deviation sees an edge from either side. In an even region of plain noise its 10 % quantile lies some 10 to 15 %
    below its mean, so that the factor 1.25 takes nearly all of the region.

    Args:
        slices: (S, C, h, w) float.
        candidates: (S, h, w) bool.

    Returns:
        (S, h, w) bool.

    >>> image = torch.cat([torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.rand(1, 1, 32, 32) * 90], dim=3)
    >>> quiet = homogeneous(image, torch.ones(1, 32, 64, dtype=torch.bool))
    >>> bool(quiet[..., :28].float().mean() > 0.6), bool(quiet[..., 32:].any())
    (True, False)
    """
    if not candidates.any():
        return candidates
    grey = slices.mean(1)
    local_sd = (_smooth(grey.square(), LOCAL_PX) - _smooth(grey, LOCAL_PX).square()).clamp_min(0).sqrt()
    values = local_sd[candidates]
    quantile = values.kthvalue(max(1, int(QUIET_SHARE * len(values)))).values
    return candidates & (local_sd <= QUIET_FACTOR * quantile)


def measure_noise(slices: Tensor, where: Tensor, *, robust: bool = True) -> NoiseSpectrum:
    """Autocovariance of what remains of some pixels after their local mean.

    Args:
        slices: (S, C, h, w) float, neighbouring slices.
        where: (S, h, w) bool, the pixels; nothing else has an influence.
        robust: leave out residuals beyond three times the standard deviation that follows from the median absolute deviation (MAD).

    >>> noise = torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> round(measure_noise(5 * noise, torch.ones(3, 64, 64, dtype=torch.bool)).sd, 1)
    4.9
    """
    weights = where[:, None].to(slices.dtype)
    mean = _smooth(slices * weights, DETREND_PX) / _smooth(weights, DETREND_PX).clamp_min(1e-6)
    residual = (slices - mean) * weights
    grey = residual.mean(1)
    if robust and where.any():
        limit = OUTLIER * MAD_TO_SD * grey[where].abs().median()
        where = where & (grey.abs() <= limit)
    kept = where.to(slices.dtype)
    scale = 1 / OF_TRIMMED_VARIANCE if robust else 1.0
    pixels = residual.movedim(1, 0)[:, where]
    channels = pixels @ pixels.T / max(pixels.shape[1], 1) * scale
    return NoiseSpectrum(_autocovariance(grey * kept, kept) * scale, channels, int(where.sum()))


def missing_noise(of: NoiseSpectrum, to: NoiseSpectrum) -> NoiseSpectrum:
    """The noise that lifts noise ``of`` to noise ``to``: at each frequency the difference of the powers, where it is positive.

    The channels are correlated as in ``to``.

    >>> white = measure_noise(torch.randn(1, 1, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool))
    >>> missing_noise(white, white).sd
    0.0
    """
    power = _power(to.covariance - of.covariance, GRID)
    lags = torch.fft.irfftn(power.double(), s=GRID, dim=(0, 1, 2)).roll((LAG_SLICES, LAG_PX, LAG_PX), (0, 1, 2))
    return NoiseSpectrum(lags[: 2 * LAG_SLICES + 1, : 2 * LAG_PX + 1, : 2 * LAG_PX + 1].float(), to.channels, of.n)


def noise_fields(
    spectrum: NoiseSpectrum, seed: int, slice_indices: Sequence[int], size_hw: tuple[int, int], purpose: int = ACQUISITION_NOISE
) -> Tensor:
    """Normal noise of a spectrum for some slices; powers below zero count as zero.

    Each slice is made of white noise of its own index and of its neighbours', each from (seed, index) alone: it does not depend on
    the other slices of the call.

    Args:
        spectrum: of the noise.
        seed: the sample's seed.
        slice_indices: positions of the slices.
        size_hw: rows and columns, at least 17 each.
        purpose: separates independent streams.

    Returns:
        (len(slice_indices), C, *size_hw) float32 on the CPU, in the unit of the image.

    >>> white = NoiseSpectrum(torch.zeros(5, 9, 9), torch.eye(1) * 4, 0)
    >>> white.covariance[2, 4, 4] = 4
    >>> fields = noise_fields(white, 7, [0, 1], (64, 64))
    >>> round(fields.std().item(), 1), torch.equal(fields[1:], noise_fields(white, 7, [1], (64, 64)))
    (2.0, True)
    """
    amplitude = _amplitude(spectrum.covariance, size_hw)  # (N, h, w // 2 + 1)
    reach = len(amplitude) // 2
    mixing = _mixing(spectrum.channels)
    white: dict[int, Tensor] = {}
    fields = []
    for index in slice_indices:
        total = torch.zeros(len(mixing), *amplitude.shape[1:], dtype=torch.complex64)
        for offset in range(-reach, reach + 1):
            position = index + offset + reach  # seeds are not negative
            if position not in white:
                (generator,) = slice_generators(seed, [position], purpose)
                white[position] = torch.fft.rfft2(
                    torch.randn(len(mixing), *size_hw, generator=generator, dtype=torch.float32, device="cpu")
                )
            total += amplitude[offset + reach] * white[position]
        fields.append(torch.einsum("ij,jhw->ihw", mixing, torch.fft.irfft2(total, s=size_hw)))
    return torch.stack(fields)


def _amplitude(covariance: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(4 LAG_SLICES + 1, h, w // 2 + 1): factors of the white noise of the neighbouring slices at each frequency of the plane."""
    depth = GRID[0] if covariance[LAG_SLICES + 1].any() else 1
    power = _power(covariance, (depth, *size_hw))
    return torch.fft.ifft(power.sqrt(), dim=0).real.roll(depth // 2, 0).float()


def _power(covariance: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(d, h, w // 2 + 1) power spectrum on a grid of d slices, which are 1 or enough for all lags; negative powers are 0."""
    depth, height, width = grid
    taper = ((LAG_PX + 1 - torch.arange(-LAG_PX, LAG_PX + 1).abs()) / TAPER_PX).clamp_max(1)
    tapered = covariance.double().cpu() * taper[:, None] * taper
    lags, plane = torch.zeros(grid, dtype=torch.float64), torch.arange(-LAG_PX, LAG_PX + 1)
    for lag in range(-LAG_SLICES, LAG_SLICES + 1) if depth > 1 else (0,):
        lags[lag % depth, (plane % height)[:, None], plane % width] = tapered[LAG_SLICES + lag]
    return torch.fft.rfftn(lags, dim=(0, 1, 2)).real.clamp_min(0)


def _mixing(channels: Tensor) -> Tensor:
    """(C, C) that gives independent channels the correlations of ``channels``, and the mean of the channels the variance 1."""
    values, vectors = torch.linalg.eigh(channels.double().cpu())
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    variance = float(root.mean(0).square().sum())
    return (root / math.sqrt(variance) if variance > 0 else root * 0).float()


def _autocovariance(residual: Tensor, where: Tensor) -> Tensor:
    """Mean products of pixels (S, h, w) of residuals that are 0 where ``where`` (S, h, w) is 0, at all lags."""
    height, width = (side + LAG_PX for side in residual.shape[-2:])
    spectra, counts = (torch.fft.rfft2(part.double(), s=(height, width)) for part in (residual, where))
    lags = torch.zeros(2 * LAG_SLICES + 1, 2 * LAG_PX + 1, 2 * LAG_PX + 1, dtype=torch.float64, device=residual.device)
    plane = torch.arange(-LAG_PX, LAG_PX + 1)
    for lag in range(min(LAG_SLICES, len(residual) - 1) + 1):
        ends = slice(0, len(residual) - lag), slice(lag, len(residual))
        products, pairs = (
            torch.fft.irfft2((part[ends[0]].conj() * part[ends[1]]).sum(0), s=(height, width))[(plane % height)[:, None], plane % width]
            for part in (spectra, counts)
        )
        lags[LAG_SLICES + lag] = torch.where(pairs > LEAST_PAIRS, products / pairs.clamp_min(1), 0)
        lags[LAG_SLICES - lag] = lags[LAG_SLICES + lag].flip(0, 1)
    return lags.float()


def _smooth(images: Tensor, sigma: float) -> Tensor:
    """Gaussian of the plane, zero padding; any leading dimensions."""
    kernel = gaussian_1d(torch.tensor(sigma, dtype=images.dtype, device=images.device), truncated=REACH)
    flat = images.reshape(1, -1, *images.shape[-2:])
    return separable_filtering(flat, [kernel, kernel], mode="zeros").reshape(images.shape)
