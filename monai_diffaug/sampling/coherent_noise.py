"""Latent noise whose low frequencies are coherent over millimetres of the patient, across slices and whatever squares the slices have.

White noise of a slice = low frequencies + high frequencies. The low ones are a Gaussian random field in the coordinates of the volume:
white noise on a grid of the plane, one sheet per slice, averaged over the neighbouring slices and smoothed in the plane. The high ones
belong to each slice alone. The parts have the powers P and 1 - P at each frequency, so each slice remains standard normal white noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from monai_diffaug.sampling.seeding import slice_generators

__all__ = ["SHEETS", "CoherentDraws", "CoherentNoise", "LatentPlace"]

SHEETS = 8  # added to the ``purpose`` of the white noise of a slice, for that of its sheet
PLANE_SHARE = (
    0.25  # standard deviation of the smoothing in the plane, over the coherence length; half the power at 4.8 of them a wavelength
)
SLICE_SHARE = 0.5  # of the average over slices: their correlation is 1/e at the coherence length
LEAST_SMOOTHING = 0.6  # in pixels of the latents: a field that varies faster has no place on their grid
REACH = 3.0  # of the Gaussians, in standard deviations


class LatentPlace(NamedTuple):
    """Place of the latents of a slice in the volume.

    Attributes:
        seed: of the sample.
        position: index of the slice.
        slice_mm: distance of the slices.
        top_mm, left_mm: upper left corner, from the middle of the slice.
        pixel_mm: size of a pixel of the latents.
        half_mm: half of the longer side of the slice; no latents reach further.
    """

    seed: int
    position: int
    slice_mm: float
    top_mm: float
    left_mm: float
    pixel_mm: float
    half_mm: float


class CoherentNoise:
    """Turns white noise of slices into white noise that is coherent at low frequencies; each draw is a new one.

    The noise of a slice depends on its seed, its place and the number of the draw alone.

    Args:
        places: P places, e.g. those of a batch.
        coherence_mm: length over which the low frequencies stay together, > 0.
        purpose: of the white noise, see ``slice_generators``.

    >>> places = [LatentPlace(seed=7, position=i, slice_mm=1.0, top_mm=-32, left_mm=-32, pixel_mm=1.0, half_mm=32) for i in (3, 4)]
    >>> white = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> noise = CoherentNoise(places, coherence_mm=8.0)(white)
    >>> low = torch.nn.functional.avg_pool2d(noise, 8)
    >>> bool(torch.corrcoef(low.flatten(1))[0, 1] > 0.3), bool(torch.corrcoef(noise.flatten(1))[0, 1] < 0.2)
    (True, True)
    >>> torch.equal(CoherentNoise(places[1:], 8.0)(white[1:]), noise[1:])  # a slice does not depend on the others of a batch
    True
    """

    def __init__(self, places: Sequence[LatentPlace], coherence_mm: float, purpose: int = 0) -> None:
        self.places = list(places)
        self.coherence_mm = coherence_mm
        self.purpose = purpose + SHEETS
        self._sheets: dict[tuple[int, int, int], Tensor] = {}  # (seed, index, cells), of the newest draw
        self._generators: dict[tuple[int, int, int], torch.Generator] = {}
        self._draws = [0] * len(self.places)

    def __call__(self, white: Tensor) -> Tensor:
        """Standard normal (P, C, n, n) on the CPU, from as much independent noise."""
        return torch.stack([self.row(i, part) for i, part in enumerate(white)])

    def row(self, i: int, white: Tensor) -> Tensor:
        """The noise (C, n, n) of place ``i``; the rows of a draw are taken in any order before those of the next draw."""
        if self._draws[i] == max(self._draws):
            self._sheets.clear()
        self._draws[i] += 1
        place, side = self.places[i], white.shape[-1]
        smoothing_mm = max(PLANE_SHARE * self.coherence_mm, LEAST_SMOOTHING * place.pixel_mm)
        cells = math.ceil(place.half_mm / smoothing_mm) + math.ceil(REACH)
        spread = SLICE_SHARE * self.coherence_mm / place.slice_mm  # in slices
        reach = math.ceil(REACH * spread)
        offsets = torch.arange(-reach, reach + 1)
        weights = torch.exp(-0.5 * (offsets / spread).square())
        weights /= weights.square().sum().sqrt()
        sheets = torch.stack([self._sheet(place, offset, cells, white.shape[0], reach) for offset in offsets.tolist()])
        sheet = torch.einsum("k,kchw->chw", weights, sheets)
        # a Gaussian over cells of its standard deviation, times the pixel: the field's power is exp(-4 pi^2 s^2 f^2) of white noise's
        centres = torch.arange(side, dtype=torch.float32) * place.pixel_mm + place.pixel_mm / 2
        nodes = torch.arange(-cells, cells + 1, dtype=torch.float32) * smoothing_mm
        scale = place.pixel_mm**0.5 / (2 * math.pi) ** 0.5 / smoothing_mm**0.5
        rows, columns = (
            torch.exp(-0.5 * ((centres[:, None] + start - nodes) / smoothing_mm).square()) * scale
            for start in (place.top_mm, place.left_mm)
        )
        low = rows @ sheet @ columns.T
        frequency = torch.fft.fftfreq(side, d=place.pixel_mm)
        power = torch.exp(-((2 * math.pi * smoothing_mm) ** 2) * (frequency[:, None].square() + frequency.square()))
        high = torch.fft.ifft2(torch.fft.fft2(white.float()) * (1 - power).sqrt()).real
        return low + high

    def _sheet(self, place: LatentPlace, offset: int, cells: int, channels: int, reach: int) -> Tensor:
        """White noise (C, 2 cells + 1, 2 cells + 1) of a slice, the newest of its stream."""
        index = place.position + offset + reach  # seeds are not negative
        key = (place.seed, index, cells)
        if key not in self._sheets:
            if key not in self._generators:
                (self._generators[key],) = slice_generators(place.seed, [index], self.purpose)
            size = (channels, 2 * cells + 1, 2 * cells + 1)
            self._sheets[key] = torch.randn(size, generator=self._generators[key], dtype=torch.float32, device="cpu")
        return self._sheets[key]


class CoherentDraws(TorchFunctionMode):
    """Context in which noise drawn from some generators becomes coherent: stochastic schedulers draw their own, with ``torch.randn``.

    Args:
        generators: one per place of ``noise``, as they are passed to the scheduler's ``step``.
        noise: makes the draws coherent.

    >>> place = LatentPlace(seed=7, position=0, slice_mm=1.0, top_mm=-4, left_mm=-4, pixel_mm=1.0, half_mm=4)
    >>> generators = slice_generators(7, [0])
    >>> with CoherentDraws(generators, CoherentNoise([place], coherence_mm=8.0)):
    ...     noise = torch.randn((1, 4, 8, 8), generator=generators[0])
    >>> noise.shape, torch.equal(noise, torch.randn((1, 4, 8, 8), generator=slice_generators(7, [0])[0]))
    (torch.Size([1, 4, 8, 8]), False)
    """

    def __init__(self, generators: Sequence[torch.Generator], noise: CoherentNoise) -> None:
        super().__init__()
        self._rows = {id(generator): i for i, generator in enumerate(generators)}
        self._noise = noise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = func(*args, **kwargs)
        row = self._rows.get(id(kwargs.get("generator"))) if func is torch.randn else None
        return drawn if row is None else self._noise.row(row, drawn[0].cpu())[None].to(drawn)
