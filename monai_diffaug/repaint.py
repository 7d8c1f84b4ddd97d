"""Repaint the touched slices of many samples together: encode, one sampling loop, decode, put back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.blending import SOFT_MODES, soft_mask
from monai_diffaug.intensity import Window
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.patches import Patch, Stack, cut_patch, put_back, square_of, whole_slice
from monai_diffaug.roi import Roi
from monai_diffaug.sampling.inpaint import inpaint_latents
from monai_diffaug.sampling.noise import slice_noise
from monai_diffaug.seeding import slice_generators
from monai_diffaug.slices import PLANES, from_slices

__all__ = ["RepaintSettings", "Repainted", "repaint", "soft_region"]

logger = logging.getLogger(__name__)

STOCHASTIC_STEP = 1  # the ``purpose`` of the generators that stochastic schedulers draw from
SOFT_WIDTH_REFERENCE_PX = 512


@dataclass(frozen=True)
class RepaintSettings:
    """The options of one edit; ``DiffusionLocalInpaint`` documents each.

    Raises:
        ValueError: an option out of range.
    """

    strength: float = 1.0
    num_inference_steps: int = 12
    guidance_scale: float = 3.0
    negative_prompt: str = ""
    noise_rho: float = 0.0
    window: Window | None = None
    plane: str = "axial"
    soft_width: float = 4.0
    soft_mode: str = "grow"
    slice_batch_size: int = 8
    roi: bool = True
    roi_context: float = 2.0

    def __post_init__(self) -> None:
        _check(0.0 < self.strength <= 1.0, f"strength must be in (0, 1], got {self.strength}")
        _check(self.num_inference_steps >= 1, f"num_inference_steps must be >= 1, got {self.num_inference_steps}")
        _check(0.0 <= self.noise_rho <= 1.0, f"noise_rho must be in [0, 1], got {self.noise_rho}")
        _check(self.plane in PLANES, f"plane must be one of {', '.join(PLANES)}, got {self.plane!r}")
        _check(self.soft_mode in SOFT_MODES, f"soft_mode must be one of {', '.join(SOFT_MODES)}, got {self.soft_mode!r}")
        _check(self.soft_width >= 0, f"soft_width must be >= 0 pixels, got {self.soft_width}")
        _check(self.slice_batch_size >= 1, f"slice_batch_size must be >= 1, got {self.slice_batch_size}")
        _check(self.roi_context >= 1.0, f"roi_context must be >= 1, got {self.roi_context}")

    @property
    def guided(self) -> bool:
        """Classifier-free guidance is on: two UNet evaluations a step."""
        return self.guidance_scale > 1.0


class Repainted(NamedTuple):
    """What became of one sample: its volume (C, H, W[, D]), or None and why."""

    volume: Tensor | None
    n_slices: int
    reason: str


class _Piece(NamedTuple):
    """A patch and the sample that it belongs to."""

    owner: int
    stack: Stack
    patch: Patch


@torch.no_grad()
def repaint(model: Inpainter, stacks: list[Stack], settings: RepaintSettings) -> list[Repainted]:
    """Repaint every touched slice of every sample.

    Slices of all samples share the batches of the model, so a batch of samples costs one model call a step; each slice has its
    own noise, drawn from its sample's seed and its position, so the result does not depend on the batching.

    Args:
        model: the inpainter.
        stacks: the samples; one with no touched slice comes back as None with the reason "empty mask".
        settings: options of the edit.

    Raises:
        torch.OutOfMemoryError: a single slice does not fit into memory.
    """
    pieces = [
        _Piece(owner, stack, cut_patch(stack, index, roi, size, _soft_width_px(settings, roi), settings.soft_mode))
        for owner, stack in enumerate(stacks)
        for index, roi, size in _squares(model, stack, settings)
    ]
    pictures: dict[int, list[Tensor]] = {owner: [] for owner in range(len(stacks))}
    # without roi the samples may have different sizes: neighbours of one size share a batch
    for _, group in groupby(pieces, key=lambda piece: piece.patch.image.shape[-1]):
        same_size = list(group)
        for piece, picture in zip(same_size, _generate(model, same_size, settings), strict=True):
            pictures[piece.owner].append(picture)
    return [
        _assemble(stack, [piece.patch for piece in pieces if piece.owner == owner], pictures[owner]) for owner, stack in enumerate(stacks)
    ]


def soft_region(model: Inpainter, stack: Stack, settings: RepaintSettings) -> Tensor:
    """(1, H, W[, D]) float32: the composite weights of an edit; where they are 0 nothing can change."""
    weights = torch.zeros(stack.masks.shape)
    for index, roi, _ in _squares(model, stack, settings):
        weights[index, 0] = soft_mask(stack.masks[index, 0], _soft_width_px(settings, roi), settings.soft_mode)
    return from_slices(weights, stack.plane).contiguous()


def _soft_width_px(settings: RepaintSettings, roi: Roi) -> float:
    """Standard deviation of the soft edge in pixels of the slice."""
    return settings.soft_width * roi.side / SOFT_WIDTH_REFERENCE_PX


def _squares(model: Inpainter, stack: Stack, settings: RepaintSettings) -> Iterable[tuple[int, Roi, int]]:
    """(slice, square, size in pixels that it is resampled to) of each touched slice."""
    for index in stack.indices:
        if settings.roi:
            yield index, square_of(stack, index, model.size_px, settings.roi_context), model.size_px
        else:
            roi = whole_slice(stack, model.multiple_px)
            yield index, roi, roi.side


def _assemble(stack: Stack, patches: list[Patch], pictures: list[Tensor]) -> Repainted:
    if not patches:
        return Repainted(None, 0, "empty mask")
    generated = torch.stack(pictures)
    if not bool(torch.isfinite(generated).all()):
        return Repainted(None, 0, "the model returned non-finite values")
    return Repainted(put_back(stack, patches, generated), len(patches), "")


def _generate(model: Inpainter, pieces: list[_Piece], settings: RepaintSettings) -> Tensor:
    """(P, 3, size, size) float32."""
    noise = _noise(model, pieces, settings)
    return in_batches(lambda part: _generate_batch(model, pieces[part], noise[part], settings), len(pieces), settings.slice_batch_size)


def in_batches(run: Callable[[slice], Tensor], count: int, batch_size: int) -> Tensor:
    """Run over consecutive slices of ``count`` items; a batch that does not fit into memory is halved and tried again."""
    done: list[Tensor] = []
    start = 0
    while start < count:
        stop = min(start + batch_size, count)
        try:
            done.append(run(slice(start, stop)))
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
            batch_size = (stop - start) // 2
            logger.warning("out of memory: going on with %d slices a batch", batch_size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start = stop
    return torch.cat(done)


def _noise(model: Inpainter, pieces: list[_Piece], settings: RepaintSettings, purpose: int = 0) -> Tensor:
    """(P, 4, h, w) standard normal on the CPU, from each sample's seed and slice positions."""
    size = pieces[0].patch.image.shape[-1] // model.factor
    shape = (model.vae.config.latent_channels, size, size)
    parts = []
    for _, group in groupby(pieces, key=lambda piece: piece.owner):
        own = list(group)
        parts.append(slice_noise(own[0].stack.seed, [piece.patch.index for piece in own], shape, settings.noise_rho, purpose))
    return torch.cat(parts)


def _generate_batch(model: Inpainter, pieces: list[_Piece], noise: Tensor, settings: RepaintSettings) -> Tensor:
    count = len(pieces)
    image = torch.stack([piece.patch.image for piece in pieces]).to(model.device)
    hard = torch.stack([piece.patch.hard for piece in pieces]).to(model.device)
    pictures = torch.cat([image, image * (hard < 0.5)]) if model.takes_mask else image
    latents = model.encode(pictures)
    context = model.encode_text([piece.stack.prompt for piece in pieces])
    negative = model.encode_text([settings.negative_prompt]).expand(count, -1, -1) if settings.guided else None
    soft = None
    if settings.soft_width > 0:
        weights = torch.stack([piece.patch.weights for piece in pieces]).to(model.device)
        soft = F.max_pool2d(weights, model.factor).to(model.dtype)
    result = inpaint_latents(
        model.denoise,
        model.scheduler,
        clean=latents[:count],
        masked=latents[count:] if model.takes_mask else None,
        noise=noise.to(model.device, model.dtype),
        mask=model.latent_mask(hard),
        soft=soft,
        context=context,
        negative_context=negative,
        guidance_scale=settings.guidance_scale,
        num_inference_steps=settings.num_inference_steps,
        strength=settings.strength,
        generators=[g for piece in pieces for g in slice_generators(piece.stack.seed, [piece.patch.index], STOCHASTIC_STEP)],
    )
    return model.decode(result)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
