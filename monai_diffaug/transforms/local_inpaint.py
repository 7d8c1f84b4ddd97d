"""``DiffusionLocalInpaint`` and ``DiffusionLocalInpaintd``: repaint an image inside a mask with text-guided diffusion."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.intensity import Window, window_of
from monai_diffaug.labels import paint_label
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.patches import Stack, open_stack
from monai_diffaug.provenance import DiffAugRecord, record_key
from monai_diffaug.repaint import Repainted, RepaintSettings, repaint, soft_region
from monai_diffaug.seeding import draw_seed
from monai_diffaug.slices import slice_plane

__all__ = ["DiffusionLocalInpaint", "DiffusionLocalInpaintD", "DiffusionLocalInpaintDict", "DiffusionLocalInpaintd", "Edit"]

logger = logging.getLogger(__name__)

ON_ERROR = ("raise", "passthrough")


class Edit(NamedTuple):
    """What one edit returns: the image, the label (None when none was given) and the record."""

    image: NdarrayOrTensor
    label: NdarrayOrTensor | None
    record: dict[str, str | int | float | bool]


class DiffusionLocalInpaint(RandomizableTransform):
    """Repaint an image inside a mask, slice by slice; voxels outside the soft mask stay bit-identical.

    Args:
        model: "tiny" (embedded), a local diffusers folder, a hub id "org/name@revision", or a live pipeline.
        strength: share of the noise schedule that is run, in (0, 1]; 1 starts from pure noise.
        num_inference_steps: steps of a full run.
        guidance_scale: classifier-free guidance; <= 1 switches it off and halves the UNet's work.
        negative_prompt: what the unconditional branch is told.
        noise_rho: correlation of the initial noise of neighbouring slices, in [0, 1].
        window: intensity range the model sees in the image's unit, e.g. (-160, 240) HU; default the image's 0.5 and
            99.5 percentiles (0 to 255 for uint8).
        plane: anatomical plane of the slices of a 3-D image: "axial", "coronal" or "sagittal".
        soft_width: width of the soft edge, standard deviation in pixels when the region is 512 pixels wide; 0 is hard.
        soft_mode: "grow", "inner" or "centre", see ``monai_diffaug.blending.soft_mask``.
        label_value: the class id that the edit paints into the label; 0 erases.
        slice_batch_size: slices in one model call; halved when memory runs out, with the same result.
        roi: repaint a square around the mask, resampled to the model's size; False repaints whole slices as they are.
        roi_context: side of that square as a multiple of the mask's extent.
        on_error: "raise", or "passthrough": log, return the input untouched and say why in the record.
        device: where the model runs; default the image's device.
        dtype: floating type of the weights, "float32", "bfloat16" or "float16".
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
        noise_rho: float = 0.0,
        window: Sequence[float] | None = None,
        plane: str = "axial",
        soft_width: float = 4.0,
        soft_mode: str = "grow",
        label_value: int = 1,
        slice_batch_size: int = 8,
        roi: bool = True,
        roi_context: float = 2.0,
        on_error: str = "raise",
        device: str | torch.device | None = None,
        dtype: str = "float32",
        prob: float = 1.0,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
        if window is not None and len(window) != 2:
            raise ValueError(f"window must be (low, high), got {window}")
        self.spec = spec_of("inpainter", model, dtype)
        self.settings = RepaintSettings(
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            noise_rho=noise_rho,
            window=None if window is None else Window(float(window[0]), float(window[1])),
            plane=plane,
            soft_width=soft_width,
            soft_mode=soft_mode,
            slice_batch_size=slice_batch_size,
            roi=roi,
            roi_context=roi_context,
        )
        self.label_value = label_value
        self.on_error = on_error
        self.device = None if device is None else str(device)
        self.seed = 0

    def randomize(self, data: Any | None = None) -> None:
        """Draw the coin and one seed, always both."""
        super().randomize(None)
        self.seed = draw_seed(self.R)

    def __call__(
        self, img: NdarrayOrTensor, mask: NdarrayOrTensor, prompt: str, label: NdarrayOrTensor | None = None, randomize: bool = True
    ) -> Edit:
        """Repaint one image.

        Args:
            img: (C, H, W) or (C, H, W, D), C 1 or 3.
            mask: (1, ...) on the same grid, non-zero means repaint.
            prompt: what shall be seen there.
            label: (1, ...) class ids on the same grid.
            randomize: draw coin and seed anew.

        Raises:
            GridMismatchError: mask or label on another grid.
            ValueError: wrong dimensions or channels, non-finite voxels.
        """
        if randomize:
            self.randomize()
        if not self._do_transform:
            return Edit(img, label, self.untouched(prompt, "not triggered"))
        return self.apply(img, mask, prompt, label, seed=self.seed)

    def untouched(self, prompt: str, reason: str) -> dict[str, str | int | float | bool]:
        """The record of a sample that was left as it is."""
        return DiffAugRecord(seed=self.seed, prompt=prompt, model=self.spec.source, reason=reason).as_dict()

    def apply(self, img: NdarrayOrTensor, mask: NdarrayOrTensor, prompt: str, label: NdarrayOrTensor | None = None, *, seed: int) -> Edit:
        """Repaint with a given seed: the same inputs and seed give the same output, whatever the slice batch size."""
        return self.apply_batch([img], [mask], [prompt], None if label is None else [label], seeds=[seed])[0]

    def apply_batch(
        self,
        images: Sequence[NdarrayOrTensor],
        masks: Sequence[NdarrayOrTensor],
        prompts: Sequence[str],
        labels: Sequence[NdarrayOrTensor | None] | None = None,
        *,
        seeds: Sequence[int],
    ) -> list[Edit]:
        """Repaint several samples in one go: as ``apply`` one by one, with one model call a step for the slices of all.

        Args:
            images: each (C, H, W[, D]); sizes, dtypes and types may differ.
            masks, prompts, seeds: one a sample.
            labels: one a sample, or None.

        Raises:
            ValueError: not as many masks, prompts, labels or seeds as images; otherwise as ``apply``.
        """
        labels = [None] * len(images) if labels is None else labels
        if not len(images) == len(masks) == len(prompts) == len(labels) == len(seeds):
            raise ValueError(
                f"one mask, prompt, label and seed a sample: got {len(images)} images, {len(masks)} masks, {len(prompts)} prompts, "
                f"{len(labels)} labels and {len(seeds)} seeds"
            )
        outcomes: dict[int, Repainted] = {}
        stacks: dict[int, Stack] = {}
        for i, (img, mask, prompt, label, seed) in enumerate(zip(images, masks, prompts, labels, seeds, strict=True)):
            try:
                stacks[i] = self._open(img, mask, prompt, label, seed)
            except (ValueError, RuntimeError, OSError) as error:
                outcomes[i] = self._failed(error)
        outcomes.update(zip(stacks, self._run(list(stacks.values())), strict=True))
        return [
            self._conclude(outcomes[i], img, mask, prompt, label, seed)
            for i, (img, mask, prompt, label, seed) in enumerate(zip(images, masks, prompts, labels, seeds, strict=True))
        ]

    def _run(self, stacks: list[Stack]) -> list[Repainted]:
        """The model's work; no model is loaded when there is none."""
        if not any(stack.indices for stack in stacks):
            return [Repainted(None, 0, "empty mask")] * len(stacks)
        try:
            return repaint(self._model(stacks[0]), stacks, self.settings)
        except (ValueError, RuntimeError, OSError) as error:
            return [self._failed(error)] * len(stacks)

    def _model(self, stack: Stack) -> Inpainter:
        return shared_model(self.spec, self.device or stack.slices.device, load_inpainter)

    def soft_region(self, img: NdarrayOrTensor, mask: NdarrayOrTensor) -> Tensor:
        """(1, H, W[, D]) float32: the weights of the edit in each voxel; where they are 0 nothing can change."""
        stack = self._open(img, mask, "", None, 0)
        return soft_region(self._model(stack), stack, self.settings)

    def _open(self, img: NdarrayOrTensor, mask: NdarrayOrTensor, prompt: str, label: NdarrayOrTensor | None, seed: int) -> Stack:
        """The sample as a stack of slices, checked."""
        check_image(img)
        check_grid("mask", mask, img)
        if label is not None:
            check_grid("label", label, img)
        volume, region = _plain(img), _plain(mask)
        affine = img.affine.cpu().numpy() if isinstance(img, MetaTensor) else None
        plane = slice_plane(affine, self.settings.plane, volume.ndim - 1)
        if not bool((region != 0).any()):
            return open_stack(volume, region, plane, Window(0.0, 1.0), prompt=prompt, seed=seed)  # nothing will be asked of it
        if volume.dtype.is_floating_point and not bool(torch.isfinite(volume).all()):
            raise ValueError("the image has non-finite voxels (NaN or infinity); replace them first, e.g. with torch.nan_to_num")
        window = self.settings.window or window_of(volume)
        return open_stack(volume, region, plane, window, prompt=prompt, seed=seed)

    def _failed(self, error: Exception) -> Repainted:
        """Raise, or with ``on_error="passthrough"`` an outcome that leaves the sample as it is."""
        if self.on_error == "raise":
            raise error
        logger.warning("left a sample untouched: %s", error)
        return Repainted(None, 0, f"{type(error).__name__}: {error}")

    def _conclude(
        self,
        outcome: Repainted,
        img: NdarrayOrTensor,
        mask: NdarrayOrTensor,
        prompt: str,
        label: NdarrayOrTensor | None,
        seed: int,
    ) -> Edit:
        record = DiffAugRecord(seed=seed, prompt=prompt, model=self.spec.source, tries=1, reason=outcome.reason)
        if outcome.volume is None:
            return Edit(img, label, record.as_dict())
        record.applied, record.n_slices = True, outcome.n_slices
        return Edit(_like(outcome.volume, img), self._paint(label, mask), record.as_dict())

    def _paint(self, label: NdarrayOrTensor | None, mask: NdarrayOrTensor) -> NdarrayOrTensor | None:
        if label is None:
            return None
        painted = paint_label(_plain(label), _plain(mask).to(_plain(label).device), self.label_value)
        return _like(painted, label)


class DiffusionLocalInpaintd(RandomizableTransform, MapTransform):
    """Repaint each image inside its mask, slice by slice; voxels outside the soft mask stay bit-identical.

    Writes the image, the label and a record ``{key}_diffaug`` (see ``monai_diffaug.provenance``), with the same keys
    whether it was triggered or not. All options of ``DiffusionLocalInpaint`` apply.

    Args:
        keys: images to repaint, each (C, H, W[, D]), any intensity unit.
        mask_key: region to repaint on the same grid; non-zero means repaint.
        prompt_key: the text, as ``TextPromptd`` writes it.
        label_key: label to paint ``label_value`` into; None leaves labels alone.
        keep_original: hand image, label and mask on untouched, by reference, as ``{key}_original`` for a
            ``LatentValidated`` that follows and takes them out again.
        prob: probability of being applied.
        allow_missing_keys: skip images that a sample lacks.

    Raises:
        KeyError: the sample has no mask or no prompt.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mask_key: str = "mask",
        prompt_key: str = "prompt",
        label_key: str | None = None,
        label_value: int = 1,
        keep_original: bool = False,
        model: Any = "tiny",
        strength: float = 1.0,
        num_inference_steps: int = 12,
        guidance_scale: float = 3.0,
        negative_prompt: str = "",
        noise_rho: float = 0.0,
        window: Sequence[float] | None = None,
        plane: str = "axial",
        soft_width: float = 4.0,
        soft_mode: str = "grow",
        slice_batch_size: int = 8,
        roi: bool = True,
        roi_context: float = 2.0,
        on_error: str = "raise",
        device: str | torch.device | None = None,
        dtype: str = "float32",
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.inpaint = DiffusionLocalInpaint(
            model,
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            noise_rho=noise_rho,
            window=window,
            plane=plane,
            soft_width=soft_width,
            soft_mode=soft_mode,
            label_value=label_value,
            slice_batch_size=slice_batch_size,
            roi=roi,
            roi_context=roi_context,
            on_error=on_error,
            device=device,
            dtype=dtype,
        )
        self.mask_key = mask_key
        self.prompt_key = prompt_key
        self.label_key = label_key
        self.keep_original = keep_original
        self.seed = 0

    def randomize(self, data: Any | None = None) -> None:
        """Draw the coin and one seed, always both."""
        super().randomize(None)
        self.seed = draw_seed(self.R)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return self.edit(data, seed=self.seed, triggered=self._do_transform)

    def edit(self, data: Mapping[Hashable, Any], *, seed: int, triggered: bool = True) -> dict[Hashable, Any]:
        """The deterministic part: repaint with a given seed, or only add the keys when not triggered."""
        d = dict(data)
        if self.keep_original:
            self._hand_on(d)
        original_label = d.get(self.label_key) if self.label_key is not None else None
        for key in self.key_iterator(d):
            if not triggered:
                self.inpaint.seed = seed
                d[record_key(str(key))] = self.inpaint.untouched(str(d.get(self.prompt_key, "")), "not triggered")
                continue
            mask, prompt = self._required(d, self.mask_key, "MedSAMMaskd"), self._required(d, self.prompt_key, "TextPromptd")
            edit = self.inpaint.apply(d[key], mask, str(prompt), original_label, seed=seed)
            d[key], d[record_key(str(key))] = edit.image, edit.record
            if edit.label is not None and edit.record["applied"]:
                d[self.label_key] = edit.label
        return d

    def _required(self, d: Mapping[Hashable, Any], key: str, writer: str) -> Any:
        if key not in d:
            held = ", ".join(map(str, d))
            raise KeyError(f"the sample has no {key!r} (it has {held}); put {writer} before, or name the key that holds it")
        return d[key]

    def _hand_on(self, d: dict[Hashable, Any]) -> None:
        for key in (*self.key_iterator(d), self.label_key, self.mask_key):
            if key is not None and key in d:
                d[f"{key}_original"] = d[key]


DiffusionLocalInpaintD = DiffusionLocalInpaintDict = DiffusionLocalInpaintd


def check_image(img: NdarrayOrTensor) -> None:
    """Raise ValueError unless the image is (1 or 3, H, W) or (1 or 3, H, W, D)."""
    if img.ndim not in (3, 4) or img.shape[0] not in (1, 3):
        raise ValueError(
            f"an image must be (C, H, W) or (C, H, W, D) with C 1 or 3, got shape {tuple(img.shape)}; add EnsureChannelFirstd before"
        )


def check_grid(name: str, array: NdarrayOrTensor, img: NdarrayOrTensor) -> None:
    """Raise GridMismatchError unless ``array`` is (1, ...) on the image's grid."""
    if tuple(array.shape) != (1, *img.shape[1:]):
        raise GridMismatchError(
            f"{name} {tuple(array.shape)} is not on the grid of the image {tuple(img.shape)}: expected {(1, *img.shape[1:])}; "
            "add ResampleToMatchd before (and EnsureChannelFirstd when the channel is missing)"
        )


def _plain(array: NdarrayOrTensor) -> Tensor:
    """A plain tensor that shares memory where it can; unsigned types that torch cannot compute with become int64."""
    tensor = convert_to_tensor(array, track_meta=False)
    plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    wide = plain.dtype in (torch.uint16, torch.uint32, torch.uint64)
    result: Tensor = plain.to(torch.int64) if wide else plain
    return result


def _like(tensor: Tensor, target: NdarrayOrTensor) -> NdarrayOrTensor:
    """The tensor in the target's type, dtype, device and meta data."""
    converted: NdarrayOrTensor = convert_to_dst_type(tensor, target)[0]
    return converted
