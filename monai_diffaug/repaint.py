"""Repaint the touched slices of many samples together: encode, one sampling loop, decode, put back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.blending import SOFT_MODES, soft_mask
from monai_diffaug.intensity import Window
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.patches import Patch, Stack, cut_patch, put_back, square_of, whole_slice
from monai_diffaug.roi import Roi
from monai_diffaug.sampling.inpaint import Denoiser, inpaint_latents
from monai_diffaug.sampling.inversion import invert_latents
from monai_diffaug.sampling.noise import LOCAL_NOISE, local_noise, slice_noise
from monai_diffaug.sampling.prompt_mix import mix_prompts
from monai_diffaug.seeding import slice_generators
from monai_diffaug.slices import PLANES, from_slices

__all__ = ["Models", "RepaintSettings", "Repainted", "repaint", "soft_region"]

logger = logging.getLogger(__name__)

STOCHASTIC_STEP = 1  # the ``purpose`` of the generators that stochastic schedulers draw from
SOFT_WIDTH_REFERENCE_PX = 512
NOISE_SOURCES = ("random", "inverted")
CPU_BATCH = 16  # of 64 px slices 6 % faster than 8, of 128 px slices as fast
LARGEST_UNET_BATCH, LARGEST_VAE_BATCH = 64, 8  # 8 decodes of 512 px fill a GPU already
FREE_SHARE = 0.8
CONSTANT = 1e-6  # of the model's range [-1, 1]
VAE_MAPS = 3.0  # peak of a decode in full-size feature maps of block_out_channels[1]: 0.4 GB for SD at 512 px in bfloat16
UNET_MAPS = 26.0  # peak of a UNet call in feature maps of block_out_channels[0] at the latents' size: 68 MB for SD-1.5 in bfloat16


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
    noise_source: str = "random"
    noise_scale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    soft_width: float = 4.0
    soft_width_mm: float | None = None
    soft_mode: str = "grow"
    slice_batch_size: int | None = None
    roi: bool = True
    roi_context: float = 2.0
    control_scale: float = 1.0
    control_inside: bool = True

    def __post_init__(self) -> None:
        _check(0.0 < self.strength <= 1.0, f"strength must be in (0, 1], got {self.strength}")
        _check(self.num_inference_steps >= 1, f"num_inference_steps must be >= 1, got {self.num_inference_steps}")
        _check(0.0 <= self.noise_rho <= 1.0, f"noise_rho must be in [0, 1], got {self.noise_rho}")
        _check(self.plane in PLANES, f"plane must be one of {', '.join(PLANES)}, got {self.plane!r}")
        _check(self.soft_mode in SOFT_MODES, f"soft_mode must be one of {', '.join(SOFT_MODES)}, got {self.soft_mode!r}")
        _check(self.soft_width >= 0, f"soft_width must be >= 0 pixels, got {self.soft_width}")
        width = self.soft_width_mm
        _check(width is None or width >= 0, f"soft_width_mm must be >= 0 mm, got {width}")
        asked = self.slice_batch_size
        _check(asked is None or asked >= 1, f"slice_batch_size must be >= 1, got {asked}")
        _check(self.noise_source in NOISE_SOURCES, f"noise_source must be one of {', '.join(NOISE_SOURCES)}, got {self.noise_source!r}")
        _check(0.0 <= self.noise_scale <= 1.0, f"noise_scale must be in [0, 1], got {self.noise_scale}")
        begin, end = self.guidance_interval
        _check(0.0 <= begin < end <= 1.0, f"guidance_interval needs 0 <= begin < end <= 1, got {self.guidance_interval}")
        _check(self.control_scale >= 0, f"control_scale must be >= 0, got {self.control_scale}")
        _check(self.roi_context >= 1.0, f"roi_context must be >= 1, got {self.roi_context}")

    @property
    def hard_edge(self) -> bool:
        """The region has no soft edge."""
        return (self.soft_width if self.soft_width_mm is None else self.soft_width_mm) == 0

    @property
    def guided(self) -> bool:
        """Classifier-free guidance is on: two UNet evaluations a step."""
        return self.guidance_scale > 1.0


@dataclass(frozen=True)
class Models:
    """The networks of one edit.

    Attributes:
        inpainter: repaints.
        controlnet: keeps edges, a diffusers ControlNetModel; None without one.
        semantic_controller: predicts what the mask hides, a ``SemanticModel``; None without one.
    """

    inpainter: Inpainter
    controlnet: Any = None
    semantic_controller: Any = None


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
def repaint(models: Models, stacks: list[Stack], settings: RepaintSettings) -> list[Repainted]:
    """Repaint every touched slice of every sample.

    Slices of all samples share the batches of the model, so a batch of samples costs one model call a step; each slice has its
    own noise, drawn from its sample's seed and its position, so the result does not depend on the batching.

    Args:
        models: the inpainter and what steers it.
        stacks: the samples; one with no touched slice comes back as None with the reason "empty mask".
        settings: options of the edit.

    Raises:
        torch.OutOfMemoryError: a single slice does not fit into memory.
    """
    model = models.inpainter
    pieces = [
        _Piece(owner, stack, cut_patch(stack, index, roi, size, _soft_width_px(settings, stack, roi), settings.soft_mode))
        for owner, stack in enumerate(stacks)
        for index, roi, size in _squares(model, stack, settings)
    ]
    pictures: dict[int, list[Tensor]] = {owner: [] for owner in range(len(stacks))}
    # without roi the samples may have different sizes: neighbours of one size share a batch
    for _, group in groupby(pieces, key=lambda piece: piece.patch.image.shape[-1]):
        same_size = list(group)
        for piece, picture in zip(same_size, _generate(models, same_size, settings), strict=True):
            pictures[piece.owner].append(picture)
    return [
        _assemble(stack, [piece.patch for piece in pieces if piece.owner == owner], pictures[owner]) for owner, stack in enumerate(stacks)
    ]


def soft_region(model: Inpainter, stack: Stack, settings: RepaintSettings) -> Tensor:
    """(1, H, W[, D]) float32: the composite weights of an edit; where they are 0 nothing can change."""
    weights = torch.zeros(stack.masks.shape)
    for index, roi, _ in _squares(model, stack, settings):
        weights[index, 0] = soft_mask(stack.masks[index, 0], _soft_width_px(settings, stack, roi), settings.soft_mode)
    return from_slices(weights, stack.plane).contiguous()


def _soft_width_px(settings: RepaintSettings, stack: Stack, roi: Roi) -> float:
    """Standard deviation of the soft edge in pixels of the slice."""
    if settings.soft_width_mm is not None:
        return settings.soft_width_mm / stack.pixel_mm
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
    spread = generated.flatten(1).amax(1) - generated.flatten(1).amin(1)
    if bool((spread < CONSTANT).any()):
        return Repainted(None, 0, "the model returned a constant picture")
    return Repainted(put_back(stack, patches, generated), len(patches), "")


def _generate(models: Models, pieces: list[_Piece], settings: RepaintSettings) -> Tensor:
    """(P, 3, size, size) float32."""
    model = models.inpainter
    wide, narrow = batch_sizes(model, pieces[0].patch.image.shape[-1], settings.guided, settings.slice_batch_size)
    noise = _noise(model, pieces, settings)
    eta = _noise(model, pieces, settings, LOCAL_NOISE) if settings.noise_scale > 0 else None
    latents = in_batches(
        lambda part: _sample(models, pieces[part], noise[part], None if eta is None else eta[part], settings, narrow), len(pieces), wide
    )
    return in_batches(lambda part: model.decode(latents[part]), len(pieces), narrow)


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


def batch_sizes(model: Inpainter, side_px: int, guided: bool, asked: int | None) -> tuple[int, int]:
    """Slices in one UNet call and in one VAE call: as asked, else what fits into the free memory of the GPU, and 16 on a CPU.

    The peak of memory is the VAE's decoder, not the UNet: the UNet runs wide, the VAE narrow.
    """
    if asked is not None:
        return asked, asked
    if model.device.type != "cuda":
        return CPU_BATCH, CPU_BATCH
    free = FREE_SHARE * (
        torch.cuda.mem_get_info(model.device)[0] + torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    )
    channels = getattr(model.vae.config, "block_out_channels", None) or model.vae.config.decoder_block_out_channels
    decode = VAE_MAPS * side_px**2 * channels[min(1, len(channels) - 1)] * model.dtype.itemsize
    unet = UNET_MAPS * (side_px // model.factor) ** 2 * model.unet.config.block_out_channels[0] * model.dtype.itemsize * (1 + guided)
    return max(1, min(LARGEST_UNET_BATCH, int(free / unet))), max(1, min(LARGEST_VAE_BATCH, int(free / decode)))


def _noise(model: Inpainter, pieces: list[_Piece], settings: RepaintSettings, purpose: int = 0) -> Tensor:
    """(P, 4, h, w) standard normal on the CPU, from each sample's seed and slice positions."""
    size = pieces[0].patch.image.shape[-1] // model.factor
    shape = (model.vae.config.latent_channels, size, size)
    parts = []
    for _, group in groupby(pieces, key=lambda piece: piece.owner):
        own = list(group)
        parts.append(slice_noise(own[0].stack.seed, [piece.patch.position for piece in own], shape, settings.noise_rho, purpose))
    return torch.cat(parts)


def _sample(
    models: Models, pieces: list[_Piece], noise: Tensor, eta: Tensor | None, settings: RepaintSettings, vae_batch_size: int
) -> Tensor:
    """Scaled latents (P, 4, h, w) of the repainted patches."""
    model = models.inpainter
    image = torch.stack([piece.patch.image for piece in pieces]).to(model.device)
    hard = torch.stack([piece.patch.hard for piece in pieces]).to(model.device)
    clean, masked = _encode(model, image, hard, settings, vae_batch_size)
    mask = model.latent_mask(hard)
    states = {mix: mix_prompts(model.encode_text, mix) for mix in dict.fromkeys(piece.stack.prompt for piece in pieces)}
    context = torch.cat([states[piece.stack.prompt] for piece in pieces])
    denoise = _denoiser(models, pieces, image, hard, context, settings)
    noise = noise.to(model.device, model.dtype)
    trajectory = None
    if settings.noise_source == "inverted":
        noise, trajectory = invert_latents(
            denoise,
            model.scheduler,
            clean=clean,
            mask=mask if model.takes_mask else None,
            masked=masked,
            context=context,
            num_inference_steps=settings.num_inference_steps,
            strength=settings.strength,
        )
    if eta is not None:
        noise = local_noise(noise, eta.to(noise), scale_g=settings.noise_scale, mask=mask)
    soft = None
    if not settings.hard_edge:
        weights = torch.stack([piece.patch.weights for piece in pieces]).to(model.device)
        soft = F.max_pool2d(weights, model.factor).to(model.dtype)
    return inpaint_latents(
        denoise,
        model.scheduler,
        clean=clean,
        masked=masked,
        noise=noise,
        mask=mask,
        soft=soft,
        context=context,
        negative_context=model.encode_text([settings.negative_prompt]).expand(len(pieces), -1, -1) if settings.guided else None,
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
        num_inference_steps=settings.num_inference_steps,
        strength=settings.strength,
        trajectory=trajectory,
        generators=[g for piece in pieces for g in slice_generators(piece.stack.seed, [piece.patch.position], STOCHASTIC_STEP)],
    )


def _encode(model: Inpainter, image: Tensor, hard: Tensor, settings: RepaintSettings, batch_size: int) -> tuple[Tensor, Tensor | None]:
    """Latents of the image and, for 9-channel UNets, of the image with the mask greyed out, in one pass.

    A 9-channel UNet with a hard mask starts from noise alone and puts nothing back: there the image's own latents are not needed.
    """
    count = len(image)
    needs_clean = not model.takes_mask or not settings.hard_edge or settings.strength < 1.0 or settings.noise_source == "inverted"
    wanted = [image] * needs_clean + [image * (hard < 0.5)] * model.takes_mask
    pictures = torch.cat(wanted)
    latents = in_batches(lambda part: model.encode(pictures[part]), len(pictures), batch_size)
    clean = latents[:count] if needs_clean else torch.zeros_like(latents)
    return clean, latents[-count:] if model.takes_mask else None


def _denoiser(models: Models, pieces: list[_Piece], image: Tensor, hard: Tensor, context: Tensor, settings: RepaintSettings) -> Denoiser:
    """The UNet, shown a control image or the semantic controller's tokens where there is such a network."""
    model = models.inpainter
    if models.semantic_controller is not None:
        from monai_diffaug.models.semantic_controller import SemanticDenoiser

        return SemanticDenoiser(model, models.semantic_controller, images=image, hard=hard, context=context)
    if models.controlnet is None:
        return model.denoiser()
    from monai_diffaug.edges import control_image
    from monai_diffaug.models.controlnet import ControlledDenoiser

    given = [piece.patch.control for piece in pieces]
    if all(control is not None for control in given):
        control = torch.stack([control for control in given if control is not None])
    else:
        core = torch.stack([piece.patch.core for piece in pieces]).to(model.device)
        control = control_image((image + 1) / 2, core, keep_inside=settings.control_inside)
    return ControlledDenoiser(model, models.controlnet, control, scale=settings.control_scale)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
