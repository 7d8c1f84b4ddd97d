"""Repaint an image inside a mask with text-guided diffusion."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from monai.config import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from monai_diffaug.edit.options import ControlNet, InpaintOptions, RepaintSettings, check_group
from monai_diffaug.edit.record import EMPTY_BECAUSE, DiffAugRecord
from monai_diffaug.edit.repaint import (
    Candidate,
    Look,
    Models,
    Repainted,
    decode_candidates,
    sample_candidates,
    soft_region,
)
from monai_diffaug.edit.stack import Stack, open_stack
from monai_diffaug.geometry.grids import affine_of, check_finite, check_grid, check_image, like, plain
from monai_diffaug.geometry.slices import pixel_mm, slab_of, slice_plane
from monai_diffaug.geometry.window import Window, window_of
from monai_diffaug.masks.labels import check_label_value, paint_label
from monai_diffaug.models.inpainter import Inpainter, shared_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.sampling.prompt_mix import prompt_mix_text, prompt_pairs
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = ["DiffusionLocalInpaint", "Edit", "Sampled"]

logger = logging.getLogger(__name__)

Prompt = str | Sequence[tuple[float, str]]
"""One text, or (weight, text) pairs whose text states are averaged."""

ON_ERROR = ("raise", "passthrough")


class Edit(NamedTuple):
    """What one edit returns: the image, the label (None when none was given) and the record."""

    image: NdarrayOrTensor
    label: NdarrayOrTensor | None
    record: dict[str, str | int | float | bool]


class _Sample(NamedTuple):
    img: NdarrayOrTensor
    mask: NdarrayOrTensor
    prompt: Prompt
    label: NdarrayOrTensor | None
    control: NdarrayOrTensor | None
    seed: int


class Sampled(NamedTuple):
    """A sample that is repainted in latent space: ``DiffusionLocalInpaint.finish_batch`` makes the ``Edit``.

    Attributes:
        sample: what was given.
        outcome: the candidate, not decoded yet; or why there is none.
    """

    sample: _Sample
    outcome: Candidate | Repainted


class DiffusionLocalInpaint(SeededTransform):
    """Repaint an image inside a mask, slice by slice; voxels outside the soft mask stay bit-identical.

    Args:
        model: "tiny" (embedded), a local diffusers folder, a hub id "org/name@revision", or a live pipeline.
        strength: share of the noise schedule that is run, in (0, 1]; 1 starts from pure noise.
        num_inference_steps: steps of a full run.
        guidance_scale: classifier-free guidance; <= 1 switches it off and halves the UNet's work.
        negative_prompt: what the unconditional branch is told.
        window: intensity range the model sees in the image's unit, e.g. (-160, 240) HU; default the image's 0.5 and
            99.5 percentiles (0 to 255 for uint8).
        plane: anatomical plane of the slices of a 3-D image: "axial", "coronal" or "sagittal".
        label_value: the class id that the edit paints into the label; 0 erases.
        options: noise, soft edge, region, control network and run, see ``InpaintOptions``.
        on_error: "raise", or "passthrough": log, return the input untouched and say why in the record.
        device: where the model runs; default the image's device.
        prob: probability of being applied.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        model: Any = "tiny",
        *,
        strength: float = 1.0,
        num_inference_steps: int = 12,
        guidance_scale: float = 3.0,
        negative_prompt: str = "",
        window: Sequence[float] | None = None,
        plane: str = "axial",
        label_value: int = 1,
        options: InpaintOptions | None = None,
        on_error: str = "raise",
        device: str | torch.device | None = None,
        prob: float = 1.0,
    ) -> None:
        SeededTransform.__init__(self, prob)
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
        if window is not None and len(window) != 2:
            raise ValueError(f"window must be (low, high), got {window}")
        options = InpaintOptions() if options is None else options
        check_group("options", options, InpaintOptions)
        self.settings = RepaintSettings(
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            window=None if window is None else Window(float(window[0]), float(window[1])),
            plane=plane,
            options=options.with_spec(),
        )
        self.spec = spec_of("inpainter", model, options.run.dtype, compile=options.run.compile)
        self.label_value = label_value
        self.on_error = on_error
        self.device = None if device is None else str(device)

    def __call__(
        self,
        img: NdarrayOrTensor,
        mask: NdarrayOrTensor,
        prompt: Prompt,
        label: NdarrayOrTensor | None = None,
        control: NdarrayOrTensor | None = None,
        randomize: bool = True,
    ) -> Edit:
        """Repaint one image.

        Args:
            img: (C, H, W) or (C, H, W, D), C 1 or 3.
            mask: (1, ...) on the same grid, non-zero means repaint.
            prompt: what shall be seen there; or (weight, text) pairs, whose text states are averaged.
            label: (1, ...) class ids on the same grid.
            control: (1 or 3, ...) in [0, 1] on the same grid, what the ControlNet is shown; None draws it from image and mask.
            randomize: draw coin and seed anew.

        Raises:
            GridMismatchError: mask, label or control on another grid.
            ValueError: wrong dimensions or channels, non-finite voxels, a control image without a ControlNet.
        """
        if randomize:
            self.randomize()
        if not self._do_transform:
            return Edit(img, label, self.untouched(prompt, "not triggered"))
        return self.apply(img, mask, prompt, label, control, seed=self.seed)

    def untouched(self, prompt: Prompt, reason: str) -> dict[str, str | int | float | bool]:
        """The record of a sample that was left as it is."""
        return DiffAugRecord(seed=self.seed, prompt=_prompt_text(prompt), model=self.spec.source, reason=reason).as_dict()

    def apply(
        self,
        img: NdarrayOrTensor,
        mask: NdarrayOrTensor,
        prompt: Prompt,
        label: NdarrayOrTensor | None = None,
        control: NdarrayOrTensor | None = None,
        *,
        seed: int,
    ) -> Edit:
        """Repaint with a given seed: the same inputs and seed give the same output, whatever the slice batch size."""
        return self.apply_batch([img], [mask], [prompt], [label], [control], seeds=[seed])[0]

    def apply_batch(
        self,
        images: Sequence[NdarrayOrTensor],
        masks: Sequence[NdarrayOrTensor],
        prompts: Sequence[Prompt],
        labels: Sequence[NdarrayOrTensor | None] | None = None,
        controls: Sequence[NdarrayOrTensor | None] | None = None,
        *,
        seeds: Sequence[int],
    ) -> list[Edit]:
        """Repaint several samples in one go: as ``apply`` one by one, with one model call a step for the slices of all.

        Args:
            images: each (C, H, W[, D]); sizes, dtypes and types may differ.
            masks, prompts, seeds: one a sample.
            labels, controls: one a sample, or None.

        Raises:
            ValueError: not as many masks, prompts, labels, controls or seeds as images; otherwise as ``apply``.
        """
        return self.finish_batch(self.sample_batch(images, masks, prompts, labels, controls, seeds=seeds))

    def sample_batch(
        self,
        images: Sequence[NdarrayOrTensor],
        masks: Sequence[NdarrayOrTensor],
        prompts: Sequence[Prompt],
        labels: Sequence[NdarrayOrTensor | None] | None = None,
        controls: Sequence[NdarrayOrTensor | None] | None = None,
        *,
        seeds: Sequence[int],
        look: Look | None = None,
    ) -> list[Sampled]:
        """The first part of ``apply_batch``, with its arguments and errors: all but the decoding, which a refused candidate is spared.

        A ``look`` is taken at a single sample before its latents are done, see ``sample_candidates``.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts= needs a list with one text for each of the {len(images)} images, got the text {prompts!r}")
        absent = [None] * len(images)
        columns = (images, masks, prompts, absent if labels is None else labels, absent if controls is None else controls, seeds)
        if len({len(column) for column in columns}) > 1:
            names = ("images", "masks", "prompts", "labels", "controls", "seeds")
            counts = ", ".join(f"{len(column)} {name}" for column, name in zip(columns, names, strict=True))
            raise ValueError(f"one mask, prompt, label, control and seed a sample, got {counts}")
        samples = [_Sample(*row) for row in zip(*columns, strict=True)]
        outcomes: dict[int, Candidate | Repainted] = {}
        stacks: dict[int, Stack] = {}
        for i, sample in enumerate(samples):
            try:
                stacks[i] = self._open(sample)
            except (ValueError, RuntimeError, OSError) as error:
                outcomes[i] = self._failed(error)
        outcomes.update(zip(stacks, self._sample(list(stacks.values()), look), strict=True))
        return [Sampled(sample, outcomes[i]) for i, sample in enumerate(samples)]

    def finish_batch(self, sampled: Sequence[Sampled]) -> list[Edit]:
        """The second part of ``apply_batch``: decode what ``sample_batch`` gave, or some of it, and put it back."""
        candidates = {i: one.outcome for i, one in enumerate(sampled) if isinstance(one.outcome, Candidate)}
        decoded = dict(zip(candidates, self._decode(list(candidates.values())), strict=True))
        return [
            self._conclude(decoded[i] if isinstance(one.outcome, Candidate) else one.outcome, one.sample) for i, one in enumerate(sampled)
        ]

    def leave(self, one: Sampled) -> Edit:
        """The sample as it was given, and the record of a candidate that nobody decodes."""
        if isinstance(one.outcome, Repainted):
            return self._conclude(one.outcome, one.sample)
        edit = self._conclude(Repainted(None, 0, "not decoded"), one.sample)
        return edit._replace(record={**edit.record, "n_slices": one.outcome.n_slices})

    def soft_region(self, img: NdarrayOrTensor, mask: NdarrayOrTensor) -> Tensor:
        """(1, H, W[, D]) float32: the weights of the edit in each voxel; where they are 0 nothing can change."""
        stack = self._open(_Sample(img, mask, "", None, None, 0))
        return soft_region(self.inpainter_on(stack.slices.device), stack, self.settings)

    def inpainter_on(self, device: torch.device) -> Inpainter:
        """The inpainter that repaints images of this device; loaded at the first call."""
        return shared_inpainter(self.spec, self.device or device)

    def _sample(self, stacks: list[Stack], look: Look | None) -> Sequence[Candidate | Repainted]:
        """The sampler's work; no model is loaded when there is none."""
        if not any(stack.indices for stack in stacks):
            return [Repainted(None, 0, "empty mask")] * len(stacks)
        try:
            return sample_candidates(self._models(stacks[0].slices.device), stacks, self.settings, look)
        except (ValueError, RuntimeError, OSError) as error:
            return [self._failed(error)] * len(stacks)

    def _decode(self, candidates: list[Candidate]) -> list[Repainted]:
        """The decoder's work."""
        if not candidates:
            return []
        try:
            return decode_candidates(self.inpainter_on(candidates[0].stack.slices.device), candidates, self.settings)
        except (ValueError, RuntimeError, OSError) as error:
            return [self._failed(error)] * len(candidates)

    def _models(self, device: torch.device) -> Models:
        inpainter = self.inpainter_on(device)
        place, dtype = inpainter.device, str(inpainter.dtype).removeprefix("torch.")  # of a live one: where and as it is
        control = self.settings.options.control
        if control is None:
            return Models(inpainter)
        spec = replace(control.source, dtype=dtype)
        if isinstance(control, ControlNet):
            from monai_diffaug.models.controlnet import load_controlnet

            return Models(inpainter, controlnet=shared_model(spec, place, load_controlnet))
        from monai_diffaug.models.semantic_controller import load_semantic_controller

        return Models(inpainter, semantic_controller=shared_model(spec, place, load_semantic_controller))

    def _open(self, sample: _Sample) -> Stack:
        """The sample as a stack of slices, checked."""
        img = sample.img
        check_image(img)
        check_grid("mask", sample.mask, img)
        if sample.label is not None:
            check_grid("label", sample.label, img)
            check_label_value(sample.label.dtype, self.label_value)
        if sample.control is not None:
            check_grid("control", sample.control, img, channels=(1, 3))
            if not isinstance(self.settings.options.control, ControlNet):
                raise ValueError("a control image was given, but no ControlNet: set options=InpaintOptions(control=ControlNet(...))")
        volume, region = plain(img), plain(sample.mask)
        affine = affine_of(img)
        plane = slice_plane(affine, self.settings.plane, volume.ndim - 1)
        window = Window(0.0, 1.0)  # of an empty mask nothing will be asked
        slab = slab_of(region, plane)
        if slab.length:
            check_finite(volume)
            window = self.settings.window or window_of(volume)
        return open_stack(
            volume,
            region,
            plane,
            slab,
            window,
            prompt=prompt_pairs(sample.prompt),
            seed=sample.seed,
            pixel_mm=pixel_mm(affine, plane),
            control=None if sample.control is None else plain(sample.control),
        )

    def _failed(self, error: Exception) -> Repainted:
        """Raise, or with ``on_error="passthrough"`` an outcome that leaves the sample as it is."""
        if self.on_error == "raise":
            raise error
        logger.warning("left a sample untouched: %s", error)
        return Repainted(None, 0, f"{type(error).__name__}: {error}")

    def _conclude(self, outcome: Repainted, sample: _Sample) -> Edit:
        text = _prompt_text(sample.prompt)
        record = DiffAugRecord(seed=sample.seed, prompt=text, model=self.spec.source, tries=1, reason=_reason(outcome, sample.mask))
        if outcome.volume is None:
            return Edit(sample.img, sample.label, record.as_dict())
        record.applied, record.n_slices = True, outcome.n_slices
        return Edit(like(outcome.volume, sample.img), self._paint(sample.label, sample.mask), record.as_dict())

    def _paint(self, label: NdarrayOrTensor | None, mask: NdarrayOrTensor) -> NdarrayOrTensor | None:
        if label is None:
            return None
        painted = paint_label(plain(label), plain(mask).to(plain(label).device), self.label_value)
        return like(painted, label)


def _reason(outcome: Repainted, mask: NdarrayOrTensor) -> str:
    """Why there is no edit; of an empty mask that knows why it is, also that."""
    because = mask.meta.get(EMPTY_BECAUSE) if outcome.volume is None and isinstance(mask, MetaTensor) else None
    return outcome.reason if because is None or bool(mask.any()) else f"{outcome.reason}: {because}"


def _prompt_text(prompt: Prompt) -> str:
    """The prompt as one line; what is no prompt too, as the sample's record has to say something."""
    try:
        return prompt if isinstance(prompt, str) else prompt_mix_text(prompt)
    except (TypeError, ValueError):
        return str(prompt)
