"""The last step after decoding: painted pixels get the acquisition noise of their surround, of which a decoder paints too little."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.edit.joined_slices import rows_and_columns, soft_weights
from monai_diffaug.edit.stack import Patch, ShownChannel, Stack, shown_channels
from monai_diffaug.geometry.slices import from_slices, to_slices
from monai_diffaug.geometry.window import Window
from monai_diffaug.masks.soft_edge import composite
from monai_diffaug.sampling.noise_spectrum import (
    ACQUISITION_NOISE,
    EDGE_NOISE,
    NoiseSpectrum,
    homogeneous,
    measure_noise,
    missing_noise,
    noise_fields,
)

__all__ = ["add_acquisition_noise"]

REACHES_PX = (16, 64)  # of the surround from the lesions: the quieter of the two counts, noise without tissue
LEAST_PIXELS = 100  # with fewer homogeneous or painted pixels nothing can be measured, and nothing is added
CLIPPED_SHARE = 0.02  # of the window, at each end: noise there is clipped, or that of air
WHOLE = 0.999  # soft weights from here on are painted through and through
LEAST_SIDE_PX = 32  # of the fields of noise
STREAMS = 16  # more than any ``purpose``: distance between the random streams of the channels


def add_acquisition_noise(stack: Stack, patches: list[Patch], volume: Tensor) -> Tensor:
    """The edited volume (C, H, W[, D]) with the noise that its painted pixels lack; bit-identical outside the soft masks.

    Level, spectrum (in the plane and across slices) and correlation of colours are measured in the homogeneous parts of the surround and
    inside the masks, see ``monai_diffaug.sampling.noise_spectrum``. Where a frequency has less power inside, noise with the difference is
    added, drawn from the seed of the request and the position of each slice. Channels that are repainted one by one have their own noise.

    Args:
        stack: the original slices.
        patches: the squares with their soft masks.
        volume: after ``put_back``.
    """
    slices = to_slices(stack.slab.of(volume), stack.plane).clone()
    for channel in stack.channels or (None,):
        soft = soft_weights(stack, patches, channel)
        near = rows_and_columns(soft.amax(0), REACHES_PX[-1])
        window = stack.window if channel is None else channel.window
        originals, painted = (
            torch.stack([shown_channels(image, channel) for image in part])[(..., *near)] for part in (stack.slices, slices)
        )
        noisy = _noisy(stack, originals.float(), painted, soft[(slice(None), *near)], window, channel)
        for image, part in zip(slices, noisy, strict=True):
            shown_channels(image, channel)[(..., *near)] = part
    edited = volume.clone(memory_format=torch.contiguous_format)
    stack.slab.of(edited).copy_(from_slices(slices, stack.plane))
    return edited


def _noisy(stack: Stack, originals: Tensor, painted: Tensor, weights: Tensor, window: Window, channel: ShownChannel | None) -> Tensor:
    """Painted slices (S, C, h, w), of soft weights (S, h, w), with noise."""
    surround = _surround_noise(originals, weights, window)
    inside = weights >= WHOLE
    if surround is None or int(inside.sum()) < LEAST_PIXELS:
        return painted
    missing = missing_noise(measure_noise(painted.float(), inside, robust=False), surround)
    height, width = weights.shape[-2:]
    size = (max(height, LEAST_SIDE_PX), max(width, LEAST_SIDE_PX))
    positions = range(stack.slab.first, stack.slab.first + len(weights))
    stream = 0 if channel is None else channel.index * STREAMS
    lacking, whole = (
        noise_fields(noise, stack.seed, positions, size, purpose + stream)[..., :height, :width].to(weights.device)
        for noise, purpose in ((missing, ACQUISITION_NOISE), (surround, EDGE_NOISE))
    )
    # a mix (1 - w) original + w painted has the power (1 - w)^2 surround + w^2 painted; it lacks w^2 missing + 2 w (1 - w) surround
    share = weights[:, None]
    noise = share * lacking + (2 * share * (1 - share)).sqrt() * whole
    low, high = torch.aminmax(torch.cat([stack.slices.flatten().float(), painted.flatten().float()]))  # e.g. no magnitude below 0
    noisy = (painted.float() + noise).clamp(low, high)
    return composite(painted, noisy, (share > 0).float())


def _surround_noise(originals: Tensor, weights: Tensor, window: Window) -> NoiseSpectrum | None:
    """Noise of the quieter surround within ``REACHES_PX``; None where homogeneous parts are too small."""
    margin = CLIPPED_SHARE * (window.high - window.low)
    grey = originals.mean(1)
    shown = (weights == 0) & (grey > window.low + margin) & (grey < window.high - margin)
    spectra = []
    for reach in REACHES_PX:
        rows = F.max_pool2d((weights > 0).float()[:, None], (2 * reach + 1, 1), 1, (reach, 0))
        within = F.max_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach))[:, 0] > 0
        quiet = homogeneous(originals, shown & within)
        if int(quiet.sum()) >= LEAST_PIXELS:
            spectra.append(measure_noise(originals, quiet))
    return min(spectra, key=lambda spectrum: spectrum.sd, default=None)
