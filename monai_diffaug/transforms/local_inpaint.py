"""Repaint an image inside a mask with text-guided diffusion; the steps of an edit are in ``monai_diffaug.edit``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from torch import Tensor

from monai_diffaug.edit.decode import Outcome, decode
from monai_diffaug.edit.denoise import Candidate, Look, Models, denoise, soft_region
from monai_diffaug.edit.model_defaults import with_model_defaults
from monai_diffaug.edit.options import ControlNet, InpaintOptions, RepaintSettings, check_group
from monai_diffaug.edit.record import DiffAugRecord
from monai_diffaug.edit.request import Edit, PendingEdit, Prompt, Request, finish_request, open_request, prompt_text
from monai_diffaug.edit.stack import Stack
from monai_diffaug.geometry.window import Window
from monai_diffaug.masks.labels import LabelValue
from monai_diffaug.models.inpainter import Inpainter, shared_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = ["DiffusionLocalInpaint"]

logger = logging.getLogger(__name__)

ON_ERROR = ("raise", "passthrough")


class DiffusionLocalInpaint(SeededTransform):
    """Repaint an image inside a mask, slice by slice; voxels outside the soft mask stay bit-identical.

    Args:
        model: "tiny" (embedded), a local diffusers folder, a hub id "org/name@revision", or a live pipeline.
        strength: share of the noise schedule that is run, in (0, 1]; 1 starts from pure noise.
        num_inference_steps: steps of a full run.
        guidance_scale: scale of classifier-free guidance; <= 1 switches it off and halves the work of the UNet. None leaves it to the
            model, as do ``guidance_interval``, ``Noise(gain)`` and ``Noise(acquisition)``: the embedded model, and what is trained from it,
            has a value for each modality that a prompt can begin with; other models get 3, (0, 1), 0 and False.
        negative_prompt: text of the unconditional branch.
        window: intensity range that the model sees, in the unit of the image, e.g. (-160, 240) HU. None takes 0 to 255 for
            uint8, a window by anatomy for CT in HU (``ct_window``), else the 0.5 and 99.5 percentiles without a constant border.
        plane: anatomical plane of the slices of a 3-D image: "axial", "coronal" or "sagittal".
        label_value: class id that the edit paints into the label; 0 erases. Or several class ids of nested classes, the lowest priority
            first, e.g. (2, 1, 4): then the mask holds class ids, each is painted, and labelled voxels of a higher priority keep theirs.
        options: noise, soft edge, region, control network and run, see ``InpaintOptions``.
        on_error: "raise", or "passthrough": log, return the input untouched and give the reason in the record.
        device: where the model runs; None is the device of the image.
        prob: probability of being applied.

    Raises:
        TypeError: ``options`` is of another class.
        ValueError: an option out of range.

    >>> import torch
    >>> image, mask = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 64, 64)
    >>> mask[:, 24:40, 24:40] = 1
    >>> paint = DiffusionLocalInpaint(num_inference_steps=2).set_random_state(seed=0)
    >>> edit = paint(image, mask, "ultrasound of breast, malignant mass")
    >>> edit.record["applied"], edit.image.shape, bool((edit.image[:, :8] == image[:, :8]).all())
    (True, torch.Size([1, 64, 64]), True)
    """

    def __init__(
        self,
        model: Any = "tiny",
        *,
        strength: float = 1.0,
        num_inference_steps: int = 12,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        window: Sequence[float] | None = None,
        plane: str = "axial",
        label_value: LabelValue = 1,
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
        self.label_value: LabelValue = tuple(label_value) if isinstance(label_value, Sequence) else label_value
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
            img: (C, H, W) or (C, H, W, D), C 1 to 8; channels that are no colours are repainted one by one, see ``Channels``.
            mask: (1, ...) on the same grid, non-zero means repaint.
            prompt: text that describes the result; or (weight, text) pairs, whose text states are averaged.
            label: (1, ...) class ids on the same grid.
            control: (1 or 3, ...) in [0, 1] on the same grid, the control image of the ControlNet; None draws it from image and mask.
            randomize: draw a new trigger and seed.

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
        """The record of an image that was left as it is."""
        return DiffAugRecord(seed=self.seed, prompt=prompt_text(prompt), model=self.spec.source, reason=reason).as_dict()

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
        """Repaint several images together: the results of ``apply`` one by one, with one model call per step for the slices of all.

        Args:
            images: each (C, H, W[, D]); sizes, dtypes and types may differ.
            masks, prompts, seeds: one per image.
            labels, controls: one per image, or None.

        Raises:
            ValueError: not as many masks, prompts, labels, controls or seeds as images; otherwise as ``apply``.
        """
        return self.finish_batch(self.denoise_batch(images, masks, prompts, labels, controls, seeds=seeds))

    def denoise_batch(
        self,
        images: Sequence[NdarrayOrTensor],
        masks: Sequence[NdarrayOrTensor],
        prompts: Sequence[Prompt],
        labels: Sequence[NdarrayOrTensor | None] | None = None,
        controls: Sequence[NdarrayOrTensor | None] | None = None,
        *,
        seeds: Sequence[int],
        look: Look | None = None,
    ) -> list[PendingEdit]:
        """Run everything of ``apply_batch`` except the VAE decoder, so that rejected candidates are never decoded.

        Arguments and errors as in ``apply_batch``; a ``look`` at a single image's latents is described in ``monai_diffaug.edit.denoise``.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts= needs a list with one text for each of the {len(images)} images, got the text {prompts!r}")
        absent = [None] * len(images)
        columns = (images, masks, prompts, absent if labels is None else labels, absent if controls is None else controls, seeds)
        if len({len(column) for column in columns}) > 1:
            names = ("images", "masks", "prompts", "labels", "controls", "seeds")
            counts = ", ".join(f"{len(column)} {name}" for column, name in zip(columns, names, strict=True))
            raise ValueError(f"each image needs one mask, prompt, label, control and seed, got {counts}")
        requests = [Request(*row) for row in zip(*columns, strict=True)]
        outcomes: dict[int, Candidate | Outcome] = {}
        stacks: dict[int, Stack] = {}
        for i, request in enumerate(requests):
            try:
                stacks[i] = open_request(request, self.settings, self.label_value)
            except (ValueError, RuntimeError, OSError) as error:
                outcomes[i] = self._failed(error)
        outcomes.update(zip(stacks, self._denoise(list(stacks.values()), look), strict=True))
        return [PendingEdit(request, outcomes[i]) for i, request in enumerate(requests)]

    def finish_batch(self, pending: Sequence[PendingEdit]) -> list[Edit]:
        """Decode what ``denoise_batch`` returned, or some of it, and put it back."""
        candidates = {i: each.outcome for i, each in enumerate(pending) if isinstance(each.outcome, Candidate)}
        outcomes = dict(zip(candidates, self._decode(list(candidates.values())), strict=True))
        return [
            self._finish(each.request, outcomes[i] if isinstance(each.outcome, Candidate) else each.outcome)
            for i, each in enumerate(pending)
        ]

    def leave(self, pending: PendingEdit) -> Edit:
        """The image as it was given, with the record of a candidate that is not decoded."""
        if isinstance(pending.outcome, Outcome):
            return self._finish(pending.request, pending.outcome)
        edit = self._finish(pending.request, Outcome(None, 0, "not decoded"))
        return edit._replace(record={**edit.record, "n_slices": pending.outcome.n_slices})

    def soft_region(self, img: NdarrayOrTensor, mask: NdarrayOrTensor) -> Tensor:
        """(1, H, W[, D]) float32: the weight of the edit in each voxel; where it is 0 nothing can change."""
        stack = open_request(Request(img, mask, "", None, None, 0), self.settings, self.label_value)
        return soft_region(self.inpainter_on(stack.slices.device), stack, self.settings)

    def inpainter_on(self, device: torch.device) -> Inpainter:
        """The inpainter for images of this device; loaded at the first call."""
        return shared_inpainter(self.spec, self.device or device)

    def _denoise(self, stacks: list[Stack], look: Look | None) -> Sequence[Candidate | Outcome]:
        """Latents of all stacks; no model is loaded when all masks are empty."""
        if not any(stack.indices for stack in stacks):
            return [Outcome(None, 0, "empty mask")] * len(stacks)
        try:
            models = self._models(stacks[0].slices.device)
            return self._by_settings(stacks, models.inpainter, lambda some, settings: denoise(models, some, settings, look))
        except (ValueError, RuntimeError, OSError) as error:
            return [self._failed(error)] * len(stacks)

    def _decode(self, candidates: list[Candidate]) -> list[Outcome]:
        """Decoded volumes; no model is loaded when there is no candidate."""
        if not candidates:
            return []
        try:
            model = self.inpainter_on(candidates[0].stack.slices.device)
            stacks = [candidate.stack for candidate in candidates]
            return self._by_settings(stacks, model, lambda some, settings: decode(model, some, settings), candidates)
        except (ValueError, RuntimeError, OSError) as error:
            return [self._failed(error)] * len(candidates)

    def _by_settings(
        self, stacks: list[Stack], model: Inpainter, run: Callable[[list[Any], RepaintSettings], list[Any]], items: list[Any] | None = None
    ) -> list[Any]:
        """Results of ``run`` for the items of all stacks, in their order: one call for each modality whose defaults differ."""
        chosen = [with_model_defaults(self.settings, model, stack.prompt) for stack in stacks]
        items, results = stacks if items is None else items, [None] * len(stacks)
        for settings in dict.fromkeys(chosen):
            rows = [i for i, each in enumerate(chosen) if each == settings]
            for i, result in zip(rows, run([items[i] for i in rows], settings), strict=True):
                results[i] = result
        return results

    def _models(self, device: torch.device) -> Models:
        """The networks, those that steer with the device and type of the inpainter."""
        inpainter = self.inpainter_on(device)
        control = self.settings.options.control
        if control is None:
            return Models(inpainter)
        spec = replace(control.source, dtype=str(inpainter.dtype).removeprefix("torch."))
        if isinstance(control, ControlNet):
            from monai_diffaug.models.controlnet import load_controlnet

            return Models(inpainter, controlnet=shared_model(spec, inpainter.device, load_controlnet))
        from monai_diffaug.models.semantic_controller import load_semantic_controller

        return Models(inpainter, semantic_controller=shared_model(spec, inpainter.device, load_semantic_controller))

    def _finish(self, request: Request, outcome: Outcome) -> Edit:
        plane, contrast = self.settings.plane, self.settings.options.contrast
        return finish_request(request, outcome, label_value=self.label_value, model=self.spec.source, plane=plane, contrast=contrast)

    def _failed(self, error: Exception) -> Outcome:
        """Raise, or with ``on_error="passthrough"`` an outcome that leaves the image as it is."""
        if self.on_error == "raise":
            raise error
        logger.warning("left a sample untouched: %s", error)
        return Outcome(None, 0, f"{type(error).__name__}: {error}")
