"""Intensity window: maps image units to the model's range [-1, 1] and back, in floating point."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diffaug.geometry.ct_window import ct_window, is_in_hu

__all__ = ["Window", "brighter_than_border", "warn_if_too_wide", "window_of", "without_border"]

PERCENTILES = (0.5, 99.5)
SAMPLE_VOXELS = 2**18
LEAST_SHARE = 0.02  # of a given window that an image should span


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


def window_of(image: Tensor, window: tuple[float, float] | None = None, prompt: str = "") -> Window:
    """The window of the argument, else the default of a finite image.

    The default is 0 to 255 for uint8, the window of the anatomy (``ct_window``) for CT in HU (``is_in_hu``), else the 0.5 and 99.5
    percentiles. A constant border, such as padding, counts as no intensity. A constant image gets a window of width 1 around its value,
    so that the map can be inverted.

    Args:
        image: (C, H, W[, D]), in its own unit.
        window: (low, high) in this unit.
        prompt: names modality and anatomy.

    >>> window_of(torch.zeros(1, 4, 4, dtype=torch.uint8))
    Window(low=0.0, high=255.0)
    >>> window_of(torch.full((1, 4, 4), 7.0))
    Window(low=6.5, high=7.5)
    >>> window_of(torch.linspace(-1000, 1500, 64).reshape(1, 8, 8), prompt="CT of abdomen, hepatic cyst")
    Window(low=-160.0, high=240.0)
    """
    if window is not None:
        return Window(float(window[0]), float(window[1]))
    if image.dtype == torch.uint8:
        return Window(0.0, 255.0)
    image = without_border(image)
    if is_in_hu(float(image.min()), prompt):
        return Window(*ct_window(prompt))
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


def without_border(image: Tensor) -> Tensor:
    """The image without planes at its ends that hold one value only, that of its first or its last voxel; all of a constant image.

    Args:
        image: (C, H, W[, D]).

    >>> without_border(torch.nn.functional.pad(torch.rand(1, 4, 5), (0, 3, 2, 0), value=-1.0)).shape
    torch.Size([1, 4, 5])
    """
    for index in (0, -1):
        if image.numel() == 0:
            break
        value = image[(index,) * image.ndim]
        planes = [image.select(axis, end) for axis in range(1, image.ndim) for end in (0, -1)]
        if any(plane[0].numel() > 1 and bool((plane == value).all()) for plane in planes):  # a border is more than one voxel
            content = (image != value).any(0)
            for axis in range(content.ndim):
                hits = content.any(tuple(other for other in range(content.ndim) if other != axis)).nonzero().flatten()
                if len(hits):
                    image = image.narrow(axis + 1, int(hits[0]), int(hits[-1] - hits[0]) + 1)
    return image


def brighter_than_border(image: Tensor, share: float) -> Tensor:
    """Pixels (1, H, W[, D]) that are brighter than a constant dark border by a share of the range from it to the window's end.

    The window leaves such a border out, so its darkest part may be tissue. Nothing is marked without a border, in uint8 and in CT in HU.

    >>> framed = torch.nn.functional.pad(torch.full((1, 2, 2), 100.0) + torch.arange(4.0).view(1, 2, 2), (1, 1, 1, 1))
    >>> int(brighter_than_border(framed, 0.05).sum())
    4
    """
    nothing = torch.zeros_like(image[:1], dtype=torch.bool)
    content = without_border(image)
    if image.dtype == torch.uint8 or content.shape == image.shape or is_in_hu(float(content.min())):
        return nothing
    border, window = float(image[(0,) * image.ndim]), window_of(image)
    return nothing if border >= window.low else (image > border + share * (window.high - border)).any(0, keepdim=True)


def warn_if_too_wide(volume: Tensor, window: Window) -> None:
    """Warn about a floating-point image that spans less than 2 % of a given window, e.g. [0, 1] under (0, 255): the models see one grey.

    >>> warn_if_too_wide(torch.tensor([0.0, 200.0]), Window(0, 255))
    """
    if not volume.dtype.is_floating_point or volume.numel() == 0:
        return
    lowest, highest = torch.aminmax(volume)
    if 0 < float(highest - lowest) < LEAST_SHARE * (window.high - window.low):
        warnings.warn(
            f"an image spans less than {LEAST_SHARE:.0%} of window=({window.low:g}, {window.high:g}), so the models see one grey; "
            "give the window in the unit of the image, e.g. (0, 1) after ScaleIntensityd",
            stacklevel=3,
        )
