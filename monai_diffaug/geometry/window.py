"""Intensity window: maps image units to the model's range [-1, 1] and back, in floating point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Window", "window_of"]

PERCENTILES = (0.5, 99.5)
SAMPLE_VOXELS = 2**18


@dataclass(frozen=True)
class Window:
    """Linear map between image units and [-1, 1]: ``low`` <-> -1, ``high`` <-> 1.

    >>> Window(-160, 240).to_model(torch.tensor([-1000.0, 40.0, 240.0])).tolist()
    [-1.0, 0.0, 1.0]
    >>> Window(-160, 240).to_image(torch.tensor([0.0])).item()
    40.0
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a window needs finite low < high, got ({self.low}, {self.high})")

    def to_model(self, image: Tensor) -> Tensor:
        """Image units -> float32 in [-1, 1], clipped."""
        return ((image.float() - self.low) * (2.0 / (self.high - self.low)) - 1.0).clamp(-1.0, 1.0)

    def to_image(self, model: Tensor) -> Tensor:
        """[-1, 1] -> image units."""
        return (model + 1.0) * ((self.high - self.low) / 2.0) + self.low

    def beyond(self, image: Tensor) -> Tensor:
        """Signed distance of each value of a float image from the window, 0 inside it: the part that ``to_model`` clips."""
        return image - image.clamp(self.low, self.high)


def window_of(image: Tensor, window: tuple[float, float] | None = None) -> Window:
    """The window of the argument, or the 0.5 and 99.5 percentiles of a finite image (uint8 pictures: 0 to 255).

    A constant image gets a window of width 1 around its value, so that the map can be inverted.

    >>> window_of(torch.zeros(1, 4, 4, dtype=torch.uint8))
    Window(low=0.0, high=255.0)
    >>> window_of(torch.full((1, 4, 4), 7.0))
    Window(low=6.5, high=7.5)
    """
    if window is not None:
        return Window(float(window[0]), float(window[1]))
    if image.dtype == torch.uint8:
        return Window(0.0, 255.0)
    values = image.reshape(-1)
    if values.numel() > SAMPLE_VOXELS:  # every n-th voxel suffices for a percentile; torch.quantile has a limit
        step = -(-values.numel() // SAMPLE_VOXELS)
        while math.gcd(step, values.numel()) > 1:  # a common factor with an axis would sample a few of its slices only
            step += 1
        values = values[::step]
    quantiles = torch.quantile(values.double(), torch.tensor([p / 100 for p in PERCENTILES], dtype=torch.float64, device=values.device))
    low, high = float(quantiles[0]), float(quantiles[1])
    if not low < high:
        low, high = float(values.min()), float(values.max())
    return Window(low, high) if low < high else Window(low - 0.5, low + 0.5)
