"""Denoise: the touched slices of many requests together, from image patches to latents (encode, noise, one sampling loop)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.edit.options import ControlNet, RepaintSettings
from monai_diffaug.edit.slice_batches import batch_sizes, in_batches
from monai_diffaug.edit.stack import Patch, PromptMix, Stack, cut_patch
from monai_diffaug.geometry.slices import from_slices
from monai_diffaug.geometry.squares import Square, squares_of, whole_slices
from monai_diffaug.masks.soft_edge import soft_mask
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.painting import PLAIN
from monai_diffaug.sampling.coherent_noise import CoherentDraws, CoherentNoise, LatentPlace
from monai_diffaug.sampling.inpaint_latents import Denoiser, inpaint_latents
from monai_diffaug.sampling.inversion import invert_latents
from monai_diffaug.sampling.noise import LOCAL_NOISE, local_noise, slice_noise
from monai_diffaug.sampling.prompt_mix import mix_prompts
from monai_diffaug.sampling.seeding import slice_generators

__all__ = ["PURPOSES", "Candidate", "Look", "Models", "denoise", "soft_region", "without_autocast"]

STOCHASTIC_STEP = 1  # the ``purpose`` of the generators that stochastic schedulers draw from
PURPOSES = 16  # larger than any ``purpose``: distance between the random streams of the lesions of a slice


@dataclass(frozen=True)
class Models:
    """The networks of one edit.

    Attributes:
        inpainter: repaints.
        controlnet: a diffusers ControlNetModel that keeps edges; None without one.
        semantic_controller: a ``SemanticModel`` that predicts the features behind the mask; None without one.
    """

    inpainter: Inpainter
    controlnet: Any = None
    semantic_controller: Any = None


class Candidate(NamedTuple):
    """One request whose latents are sampled and not decoded yet.

    Attributes:
        stack: slices of the request.
        patches: P squares of its touched slices; none when the mask is empty.
        latents: (P, 4, h, w) scaled.
    """

    stack: Stack
    patches: list[Patch]
    latents: Tensor

    @property
    def n_slices(self) -> int:
        """Number of touched slices; a slice with lesions far apart has several patches."""
        return len({patch.position for patch in self.patches})


class Look(NamedTuple):
    """A look at a candidate during sampling.

    Attributes:
        after: share of the sampling steps, in (0, 1).
        accepts: gets the candidate with the clean latents predicted at that step; False ends the run, which then keeps these latents.
    """

    after: float
    accepts: Callable[[Candidate], bool]


class _Piece(NamedTuple):
    """A patch and the request (by its number) that it belongs to."""

    owner: int
    stack: Stack
    patch: Patch

    @property
    def prompt(self) -> PromptMix:
        """The prompt of its channel, or of its request."""
        return self.stack.prompt if self.patch.channel is None else self.patch.channel.prompt


@torch.no_grad()
def denoise(models: Models, stacks: list[Stack], settings: RepaintSettings, look: Look | None = None) -> list[Candidate]:
    """Sample latents for every touched slice of every request.

    Slices of all requests share the batches of the model, so a batch of requests costs one model call per step. Each slice has its own
    noise, drawn from the seed of its request and its position, so the result does not depend on the batching.

    Args:
        models: the inpainter and the network that steers it.
        stacks: the requests; one without touched slices gives a candidate without patches.
        settings: options of the edit; what they leave to the model is that of ``PLAIN`` here, see ``with_model_defaults``.
        look: taken only for a single request whose slices fit into one batch; a run that it accepts is not changed by it.

    Raises:
        torch.OutOfMemoryError: a single slice does not fit into memory.
    """
    model, edge, resample = models.inpainter, settings.options.soft_edge, settings.options.region.resample
    pieces = [
        _Piece(owner, stack, cut_patch(stack, square, edge.width_px(square.roi.side, stack.pixel_mm), edge.mode, resample, channel))
        for owner, stack in enumerate(stacks)
        for square in _squares(model, stack, settings)
        for channel in stack.channels or (None,)
    ]
    candidates: dict[int, Candidate] = {}
    # whole slices may differ in size between requests: neighbours of one size share a batch
    for _, group in groupby(pieces, key=lambda piece: piece.patch.image.shape[-1]):
        same_size = list(group)
        with without_autocast(model):
            latents, start = _latents_of(models, same_size, settings, look if len(stacks) == 1 else None), 0
        for owner, run in groupby(same_size, key=lambda piece: piece.owner):
            patches = [piece.patch for piece in run]
            candidates[owner] = Candidate(stacks[owner], patches, latents[start : start + len(patches)])
            start += len(patches)
    return [candidates.get(owner) or Candidate(stack, [], torch.zeros(0, 4, 1, 1)) for owner, stack in enumerate(stacks)]


def without_autocast(model: Inpainter) -> torch.autocast:
    """Context in which the type of the weights decides, not an autocast around the pipeline or training step that calls the edit."""
    return torch.autocast(model.device.type, enabled=False)


def soft_region(model: Inpainter, stack: Stack, settings: RepaintSettings) -> Tensor:
    """(1, H, W[, D]) float32: the composite weights of an edit; where they are 0 nothing can change."""
    edge, weights = settings.options.soft_edge, torch.zeros(stack.masks.shape, dtype=torch.float32)
    for square in _squares(model, stack, settings):
        soft = soft_mask(square.mask, edge.width_px(square.roi.side, stack.pixel_mm), edge.mode)
        weights[square.row, 0] = torch.maximum(weights[square.row, 0], soft.cpu())
    region = torch.zeros(1, *stack.volume.shape[1:], dtype=torch.float32)
    stack.slab.of(region).copy_(from_slices(weights, stack.plane))
    return region


def _squares(model: Inpainter, stack: Stack, settings: RepaintSettings) -> list[Square]:
    """The part of each touched slice that the model sees."""
    region = settings.options.region
    if region.whole_slice:
        return whole_slices(stack.masks, stack.indices, model.multiple_px)
    least_side = partial(settings.options.soft_edge.least_side, pixel_mm=stack.pixel_mm)
    return squares_of(stack.masks, stack.indices, model.size_px, region.context, least_side=least_side, least_context=region.least_context)


def _stacked(squares: list[Tensor], model: Inpainter) -> Tensor:
    """(P, C, h, w) on the model's device; the requests of a batch may come from several devices."""
    return torch.stack([square.to(model.device) for square in squares])


def _latents_of(models: Models, pieces: list[_Piece], settings: RepaintSettings, look: Look | None) -> Tensor:
    """Scaled latents (P, 4, h, w) of pieces of one size, in as many runs of the sampler as memory needs."""
    model, scale = models.inpainter, settings.options.noise.scale
    unet_batch, vae_batch = batch_sizes(model, pieces[0].patch.image.shape[-1], settings.guided, settings.options.run.slice_batch_size)
    noise = _noise(model, pieces, settings)
    eta = _noise(model, pieces, settings, LOCAL_NOISE) if scale > 0 else None

    def run(part: slice) -> Tensor:
        batch = pieces[part]
        is_whole = len(batch) == len(pieces)
        return _denoise_batch(
            models, batch, noise[part], None if eta is None else eta[part], settings, vae_batch, look if is_whole else None
        )

    return in_batches(run, len(pieces), unet_batch)


def _noise(model: Inpainter, pieces: list[_Piece], settings: RepaintSettings, purpose: int = 0) -> Tensor:
    """(P, 4, h, w) standard normal on the CPU, from the seed of each request and its slice positions; one stream per lesion of a slice.

    The channels of an image have the same noise.
    """
    size = pieces[0].patch.image.shape[-1] // model.factor
    noise = torch.empty(len(pieces), model.vae.config.latent_channels, size, size, dtype=torch.float32, device="cpu")
    streams = [(piece.owner, piece.patch.part, piece.patch.channel and piece.patch.channel.index) for piece in pieces]
    for stream in dict.fromkeys(streams):
        rows, part = [i for i, each in enumerate(streams) if each == stream], stream[1]
        positions = [pieces[i].patch.position for i in rows]
        seed = pieces[rows[0]].stack.seed
        noise[rows] = slice_noise(seed, positions, noise.shape[1:], settings.options.noise.rho, purpose + part * PURPOSES)
    coherent = _coherent_noise(model, pieces, settings, purpose)
    return noise if coherent is None else coherent(noise)


def _coherent_noise(model: Inpainter, pieces: list[_Piece], settings: RepaintSettings, purpose: int) -> CoherentNoise | None:
    """Coherence over millimetres for pieces of volumes; None without it."""
    coherence_mm = settings.options.noise.coherence_mm
    if coherence_mm == 0 or any(piece.stack.plane is None for piece in pieces):
        return None
    return CoherentNoise([_latent_place(piece, model.factor) for piece in pieces], coherence_mm, purpose)


def _latent_place(piece: _Piece, factor: int) -> LatentPlace:
    stack, patch = piece.stack, piece.patch
    height, width = stack.masks.shape[-2:]
    top_mm, left_mm = ((start - length / 2) * stack.pixel_mm for start, length in ((patch.roi.top, height), (patch.roi.left, width)))
    latent_mm = patch.roi.side * stack.pixel_mm / (patch.image.shape[-1] // factor)
    half_mm = max(height, width, patch.roi.side) / 2 * stack.pixel_mm
    return LatentPlace(stack.seed, patch.position, stack.slice_mm, top_mm, left_mm, latent_mm, half_mm)


def _denoise_batch(
    models: Models,
    pieces: list[_Piece],
    noise: Tensor,
    eta: Tensor | None,
    settings: RepaintSettings,
    vae_batch: int,
    look: Look | None,
) -> Tensor:
    """Scaled latents (P, 4, h, w) of the repainted patches."""
    model = models.inpainter
    image = _stacked([piece.patch.image for piece in pieces], model)
    hard = _stacked([piece.patch.hard for piece in pieces], model)
    clean, masked = _encode(model, image, hard, settings, vae_batch)
    mask = model.latent_mask(hard)
    states = {mix: mix_prompts(model.encode_text, mix) for mix in dict.fromkeys(piece.prompt for piece in pieces)}
    context = torch.cat([states[piece.prompt] for piece in pieces])
    denoiser = _denoiser(models, pieces, image, hard, context, settings)
    noise = noise.to(model.device, model.dtype)
    trajectory = None
    if settings.options.noise.source == "inverted":
        noise, trajectory = invert_latents(
            denoiser,
            model.scheduler,
            clean=clean,
            mask=mask if model.takes_mask else None,
            masked=masked,
            context=context,
            num_inference_steps=settings.num_inference_steps,
            strength=settings.strength,
        )
    if eta is not None:
        noise = local_noise(noise, eta.to(noise), scale_g=settings.options.noise.scale, mask=mask)
    soft = None
    if not settings.options.soft_edge.hard:
        weights = _stacked([piece.patch.weights for piece in pieces], model)
        soft = F.max_pool2d(weights, model.factor).to(model.dtype)
    generators = [
        slice_generators(piece.stack.seed, [piece.patch.position], STOCHASTIC_STEP + piece.patch.part * PURPOSES)[0] for piece in pieces
    ]
    coherent = _coherent_noise(model, pieces, settings, STOCHASTIC_STEP)
    return inpaint_latents(
        denoiser,
        model.scheduler,
        clean=clean,
        masked=masked,
        noise=noise,
        mask=mask,
        soft=soft,
        context=context,
        negative_context=model.encode_text([settings.negative_prompt]).expand(len(pieces), -1, -1) if settings.guided else None,
        guidance_scale=PLAIN.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        guidance_interval=settings.options.guidance_interval or PLAIN.guidance_interval,
        num_inference_steps=settings.num_inference_steps,
        strength=settings.strength,
        trajectory=trajectory,
        generators=generators,
        draws=None if coherent is None else CoherentDraws(generators, coherent),
        noise_gain=settings.options.noise.gain or 0.0,
        look=None if look is None else (look.after, partial(_accepted, look, pieces)),
    )


def _accepted(look: Look, pieces: list[_Piece], latents: Tensor) -> bool:
    return look.accepts(Candidate(pieces[0].stack, [piece.patch for piece in pieces], latents))


def _encode(model: Inpainter, image: Tensor, hard: Tensor, settings: RepaintSettings, batch_size: int) -> tuple[Tensor, Tensor | None]:
    """Latents of the image and, for 9-channel UNets, of the image with the mask greyed out, in one pass.

    A 9-channel UNet with a hard mask starts from noise alone and puts nothing back: it does not need the latents of the image.
    """
    count = len(image)
    is_soft, is_inverted = not settings.options.soft_edge.hard, settings.options.noise.source == "inverted"
    needs_clean = not model.takes_mask or is_soft or settings.strength < 1.0 or is_inverted
    pictures = torch.cat([image] * needs_clean + [image * (hard < 0.5)] * model.takes_mask)
    latents = in_batches(lambda part: model.encode(pictures[part]), len(pictures), batch_size)
    clean = latents[:count] if needs_clean else torch.zeros_like(latents)
    return clean, latents[-count:] if model.takes_mask else None


def _denoiser(models: Models, pieces: list[_Piece], image: Tensor, hard: Tensor, context: Tensor, settings: RepaintSettings) -> Denoiser:
    """The UNet, steered by a control image or by the tokens of the semantic controller if there is such a network."""
    model = models.inpainter
    if models.semantic_controller is not None:
        from monai_diffaug.models.semantic_controller import SemanticDenoiser

        return SemanticDenoiser(model, models.semantic_controller, images=image, hard=hard, context=context)
    control = settings.options.control
    if models.controlnet is None or not isinstance(control, ControlNet):
        return model.denoiser()
    from monai_diffaug.models.controlnet import ControlledDenoiser

    return ControlledDenoiser(model, models.controlnet, _control_images(model, pieces, image, control), scale=control.scale)


def _control_images(model: Inpainter, pieces: list[_Piece], image: Tensor, options: ControlNet) -> Tensor:
    """(P, 1 or 3, h, w) in [0, 1]: the control image of each request; without one it is drawn from image and mask."""
    from monai_diffaug.masks.edges import control_image

    controls = [piece.patch.control for piece in pieces]
    present = [control for control in controls if control is not None]
    if len(present) == len(controls):
        return _stacked(present, model)
    core = _stacked([piece.patch.core for piece in pieces], model)
    drawn = control_image((image + 1) / 2, core, keep_inside=options.inside)
    if not present:
        return drawn
    pairs = zip(drawn, controls, strict=True)
    return torch.stack([picture.expand(3, -1, -1) if control is None else control.to(picture) for picture, control in pairs])
