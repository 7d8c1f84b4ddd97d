"""Repaint the touched slices of many samples together: encode, one sampling loop, decode, put back.

``sample_candidates`` ends before the decoding and ``decode_candidates`` goes on from there, so that a candidate can be refused by its
latents; ``repaint`` is both.
"""

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
from monai_diffaug.edit.stack import Patch, Stack, cut_patch, put_back
from monai_diffaug.geometry.slices import from_slices
from monai_diffaug.geometry.squares import Square, squares_of, whole_slices
from monai_diffaug.masks.soft_edge import soft_mask
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.sampling.inpaint_latents import Denoiser, inpaint_latents
from monai_diffaug.sampling.inversion import invert_latents
from monai_diffaug.sampling.noise import LOCAL_NOISE, local_noise, slice_noise
from monai_diffaug.sampling.prompt_mix import mix_prompts
from monai_diffaug.sampling.seeding import slice_generators

__all__ = [
    "Candidate",
    "Look",
    "Models",
    "RepaintSettings",
    "Repainted",
    "decode_candidates",
    "repaint",
    "sample_candidates",
    "soft_region",
]

STOCHASTIC_STEP = 1  # the ``purpose`` of the generators that stochastic schedulers draw from
PURPOSES = 16  # more than there are: the streams of the lesions of a slice lie so far apart
CONSTANT = 1e-6  # of the model's range [-1, 1]


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


class Candidate(NamedTuple):
    """One sample whose latents are there and whose picture is not.

    Attributes:
        stack: the sample.
        patches: P squares of its touched slices; none when the mask is empty.
        latents: (P, 4, h, w) scaled.
    """

    stack: Stack
    patches: list[Patch]
    latents: Tensor

    @property
    def n_slices(self) -> int:
        """Slices that are touched; one has several patches where its lesions lie far apart."""
        return len({patch.position for patch in self.patches})


class Look(NamedTuple):
    """A look at a candidate before its latents are done.

    Attributes:
        after: share of the sampling steps, in (0, 1).
        wanted: is shown the candidate with the latents that are predicted by then; False ends the run, which then has these latents.
    """

    after: float
    wanted: Callable[[Candidate], bool]


class _Piece(NamedTuple):
    """A patch and the sample that it belongs to."""

    owner: int
    stack: Stack
    patch: Patch


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
    return decode_candidates(models.inpainter, sample_candidates(models, stacks, settings), settings)


@torch.no_grad()
def sample_candidates(models: Models, stacks: list[Stack], settings: RepaintSettings, look: Look | None = None) -> list[Candidate]:
    """The first part of ``repaint``, with its arguments and errors: everything but the decoder's work.

    A ``look`` is taken at a single sample whose slices go through the model in one batch; it changes nothing in a run that goes on.
    """
    model, edge = models.inpainter, settings.options.soft_edge
    pieces = [
        _Piece(owner, stack, cut_patch(stack, square, edge.width_px(square.roi.side, stack.pixel_mm), edge.mode))
        for owner, stack in enumerate(stacks)
        for square in _squares(model, stack, settings)
    ]
    found: dict[int, Candidate] = {}
    # without roi the samples may have different sizes: neighbours of one size share a batch
    for _, group in groupby(pieces, key=lambda piece: piece.patch.image.shape[-1]):
        same_size = list(group)
        with _own_precision(model):
            latents, start = _latents_of(models, same_size, settings, look if len(stacks) == 1 else None), 0
        for owner, run in groupby(same_size, key=lambda piece: piece.owner):
            patches = [piece.patch for piece in run]
            found[owner] = Candidate(stacks[owner], patches, latents[start : start + len(patches)])
            start += len(patches)
    return [found.get(owner) or Candidate(stack, [], torch.zeros(0, 4, 1, 1)) for owner, stack in enumerate(stacks)]


@torch.no_grad()
def decode_candidates(model: Inpainter, candidates: list[Candidate], settings: RepaintSettings) -> list[Repainted]:
    """The second part of ``repaint``: pictures from latents, put back into their samples.

    Args:
        model: the inpainter that they were sampled with.
        candidates: all of ``sample_candidates``, or some of them.
        settings: options of the edit.

    Raises:
        torch.OutOfMemoryError: a single slice does not fit into memory.
    """
    pictures: dict[int, Tensor] = {}
    sampled = [(i, candidate) for i, candidate in enumerate(candidates) if candidate.patches]
    for _, group in groupby(sampled, key=lambda pair: pair[1].latents.shape[-1]):
        same_size = list(group)
        latents = torch.cat([candidate.latents for _, candidate in same_size])
        side_px = same_size[0][1].patches[0].image.shape[-1]
        _, narrow = batch_sizes(model, side_px, settings.guided, settings.options.run.slice_batch_size)
        with _own_precision(model):
            decoded = in_batches(lambda part, latents=latents: model.decode(latents[part]), len(latents), narrow)  # type: ignore[misc]
        parts = decoded.split([len(candidate.patches) for _, candidate in same_size])
        pictures.update((i, part) for (i, _), part in zip(same_size, parts, strict=True))
    return [
        _assemble(candidate, pictures[i]) if candidate.patches else Repainted(None, 0, "empty mask")
        for i, candidate in enumerate(candidates)
    ]


def _own_precision(model: Inpainter) -> torch.autocast:
    """The weights' type decides, not an autocast around a pipeline or a training step: an edit is the same wherever it is made."""
    return torch.autocast(model.device.type, enabled=False)


def _stacked(squares: list[Tensor], model: Inpainter) -> Tensor:
    """(P, C, h, w) on the model's device; the samples of a batch may come from several."""
    return torch.stack([square.to(model.device) for square in squares])


def soft_region(model: Inpainter, stack: Stack, settings: RepaintSettings) -> Tensor:
    """(1, H, W[, D]) float32: the composite weights of an edit; where they are 0 nothing can change."""
    edge, weights = settings.options.soft_edge, torch.zeros(stack.masks.shape, dtype=torch.float32)
    for square in _squares(model, stack, settings):
        own = soft_mask(square.mask, edge.width_px(square.roi.side, stack.pixel_mm), edge.mode)
        weights[square.row, 0] = torch.maximum(weights[square.row, 0], own.cpu())
    region = torch.zeros(1, *stack.volume.shape[1:], dtype=torch.float32)
    stack.slab.of(region).copy_(from_slices(weights, stack.plane))
    return region


def _squares(model: Inpainter, stack: Stack, settings: RepaintSettings) -> list[Square]:
    """What the model sees of each touched slice."""
    region = settings.options.region
    if region.whole_slice:
        return whole_slices(stack.masks, stack.indices, model.multiple_px)
    least_side = partial(settings.options.soft_edge.least_side, pixel_mm=stack.pixel_mm)
    return squares_of(stack.masks, stack.indices, model.size_px, region.context, least_side=least_side)


def _assemble(candidate: Candidate, generated: Tensor) -> Repainted:
    """The sample with its pictures (P, 3, size, size) put back."""
    if not bool(torch.isfinite(generated).all()):
        return Repainted(None, 0, "the model returned non-finite values")
    spread = generated.flatten(1).amax(1) - generated.flatten(1).amin(1)
    if bool((spread < CONSTANT).any()):
        return Repainted(None, 0, "the model returned a constant picture")
    return Repainted(put_back(candidate.stack, candidate.patches, generated), candidate.n_slices, "")


def _latents_of(models: Models, pieces: list[_Piece], settings: RepaintSettings, look: Look | None) -> Tensor:
    """Scaled latents (P, 4, h, w) of pieces of one size, in as many runs of the sampler as their number needs."""
    model = models.inpainter
    wide, narrow = batch_sizes(model, pieces[0].patch.image.shape[-1], settings.guided, settings.options.run.slice_batch_size)
    noise = _noise(model, pieces, settings)
    eta = _noise(model, pieces, settings, LOCAL_NOISE) if settings.options.noise.scale > 0 else None

    def run(part: slice) -> Tensor:
        own = pieces[part]
        return _sample(
            models, own, noise[part], None if eta is None else eta[part], settings, narrow, look if len(own) == len(pieces) else None
        )

    return in_batches(run, len(pieces), wide)


def _noise(model: Inpainter, pieces: list[_Piece], settings: RepaintSettings, purpose: int = 0) -> Tensor:
    """(P, 4, h, w) standard normal on the CPU, from each sample's seed and slice positions; each lesion of a slice has its own."""
    size = pieces[0].patch.image.shape[-1] // model.factor
    noise = torch.empty(len(pieces), model.vae.config.latent_channels, size, size, dtype=torch.float32, device="cpu")
    for owner, part in dict.fromkeys((piece.owner, piece.patch.part) for piece in pieces):
        own = [i for i, piece in enumerate(pieces) if (piece.owner, piece.patch.part) == (owner, part)]
        positions = [pieces[i].patch.position for i in own]
        noise[own] = slice_noise(
            pieces[own[0]].stack.seed, positions, noise.shape[1:], settings.options.noise.rho, purpose + part * PURPOSES
        )
    return noise


def _sample(
    models: Models,
    pieces: list[_Piece],
    noise: Tensor,
    eta: Tensor | None,
    settings: RepaintSettings,
    vae_batch_size: int,
    look: Look | None,
) -> Tensor:
    """Scaled latents (P, 4, h, w) of the repainted patches."""
    model = models.inpainter
    image = _stacked([piece.patch.image for piece in pieces], model)
    hard = _stacked([piece.patch.hard for piece in pieces], model)
    clean, masked = _encode(model, image, hard, settings, vae_batch_size)
    mask = model.latent_mask(hard)
    states = {mix: mix_prompts(model.encode_text, mix) for mix in dict.fromkeys(piece.stack.prompt for piece in pieces)}
    context = torch.cat([states[piece.stack.prompt] for piece in pieces])
    denoise = _denoiser(models, pieces, image, hard, context, settings)
    noise = noise.to(model.device, model.dtype)
    trajectory = None
    if settings.options.noise.source == "inverted":
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
        noise = local_noise(noise, eta.to(noise), scale_g=settings.options.noise.scale, mask=mask)
    soft = None
    if not settings.options.soft_edge.hard:
        weights = _stacked([piece.patch.weights for piece in pieces], model)
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
        guidance_interval=settings.options.guidance_interval,
        num_inference_steps=settings.num_inference_steps,
        strength=settings.strength,
        trajectory=trajectory,
        generators=[
            slice_generators(piece.stack.seed, [piece.patch.position], STOCHASTIC_STEP + piece.patch.part * PURPOSES)[0] for piece in pieces
        ],
        look=None if look is None else (look.after, partial(_shown, look, pieces)),
    )


def _shown(look: Look, pieces: list[_Piece], latents: Tensor) -> bool:
    return look.wanted(Candidate(pieces[0].stack, [piece.patch for piece in pieces], latents))


def _encode(model: Inpainter, image: Tensor, hard: Tensor, settings: RepaintSettings, batch_size: int) -> tuple[Tensor, Tensor | None]:
    """Latents of the image and, for 9-channel UNets, of the image with the mask greyed out, in one pass.

    A 9-channel UNet with a hard mask starts from noise alone and puts nothing back: there the image's own latents are not needed.
    """
    count = len(image)
    needs_clean = (
        not model.takes_mask
        or not settings.options.soft_edge.hard
        or settings.strength < 1.0
        or settings.options.noise.source == "inverted"
    )
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
    control = settings.options.control
    if models.controlnet is None or not isinstance(control, ControlNet):
        return model.denoiser()
    from monai_diffaug.models.controlnet import ControlledDenoiser

    return ControlledDenoiser(model, models.controlnet, _control(model, pieces, image, control), scale=control.scale)


def _control(model: Inpainter, pieces: list[_Piece], image: Tensor, options: ControlNet) -> Tensor:
    """(P, 1 or 3, h, w) in [0, 1]: the control images that were given, and those drawn from image and mask where none was."""
    from monai_diffaug.masks.edges import control_image

    given = [piece.patch.control for piece in pieces]
    held = [control for control in given if control is not None]
    if len(held) == len(given):
        return _stacked(held, model)
    core = _stacked([piece.patch.core for piece in pieces], model)
    drawn = control_image((image + 1) / 2, core, keep_inside=options.inside)
    if not held:
        return drawn
    return torch.stack([own.expand(3, -1, -1) if c is None else c.to(own) for own, c in zip(drawn, given, strict=True)])
