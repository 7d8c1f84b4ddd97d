"""The resize of MedSAM's official inference, as one matrix per axis."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["cubic_matrix", "resize_cubic"]

# Weights of the spline fall by a factor of 0.27 per pixel and soon are denormal numbers, which make processors ten times slower.
NEGLIGIBLE = 1e-12


def _mirror(index: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """Indices reflected about the centres of the first and the last sample."""
    if n == 1:
        return np.zeros_like(index)
    folded = np.mod(index, 2 * (n - 1))
    mirrored: np.ndarray[Any, Any] = np.minimum(folded, 2 * (n - 1) - folded)
    return mirrored


@lru_cache(maxsize=32)
def cubic_matrix(n_in: int, n_out: int) -> Tensor:
    """(n_out, n_in) float32: one axis of ``skimage.transform.resize(order=3, anti_aliasing=True)`` without clipping.

    A Gaussian of sigma ``max(0, (n_in / n_out - 1) / 2)`` cut at 4 sigma, then the interpolating cubic B-spline (Unser 1999,
    "Splines") at the pixel centres; mirrored borders throughout (scipy.ndimage: ``mode="mirror"``, ``grid_mode=True``).

    >>> torch.allclose(cubic_matrix(3, 3), torch.eye(3), atol=1e-6)
    True
    """
    rows = np.arange(n_in)
    sigma = max(0.0, (n_in / n_out - 1) / 2)
    blur = np.eye(n_in)
    radius = int(4 * sigma + 0.5)
    if sigma > 1e-15:
        taps = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (taps / sigma) ** 2)
        blur = np.zeros((n_in, n_in))
        for offset, weight in zip(taps, weights / weights.sum(), strict=True):
            np.add.at(blur, (rows, _mirror(rows + offset, n_in)), weight)
    knots = np.zeros((n_in, n_in))
    for tap, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        np.add.at(knots, (rows, _mirror(rows + tap, n_in)), weight)
    position = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    first = np.floor(position).astype(int)
    t = position - first
    basis = np.zeros((n_out, n_in))
    cubic = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    for tap, values in zip((-1, 0, 1, 2), cubic, strict=True):
        np.add.at(basis, (np.arange(n_out), _mirror(first + tap, n_in)), values)
    matrix = basis @ np.linalg.solve(knots, blur)
    matrix[np.abs(matrix) < NEGLIGIBLE] = 0.0
    return torch.from_numpy(matrix.astype(np.float32))


@lru_cache(maxsize=32)
def _matrix_on(n_in: int, n_out: int, device: torch.device) -> Tensor:
    """``cubic_matrix`` on a device, cached: it is copied to the device once per size."""
    return cubic_matrix(n_in, n_out).to(device)


def resize_cubic(images: Tensor, size: int) -> Tensor:
    """Images (N, C, h, w) resized to (N, C, size, size), clipped to each image's own range.

    Equals ``skimage.transform.resize(order=3, preserve_range=True, anti_aliasing=True)`` of each image in float32.
    """
    vertical = _matrix_on(images.shape[-2], size, images.device)
    horizontal = _matrix_on(images.shape[-1], size, images.device)
    images = images.float()
    resized = vertical @ images @ horizontal.T
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return torch.minimum(torch.maximum(resized, low), high)
