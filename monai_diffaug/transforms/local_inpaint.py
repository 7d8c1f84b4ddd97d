"""``DiffusionLocalInpaint`` and ``DiffusionLocalInpaintd``: repaint an image inside a mask with text-guided diffusion."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_diffaug.blending import SOFT_MODES, composite, soft_mask
from monai_diffaug.errors import GridMismatchError
from monai_diffaug.intensity import Window, window_of
from monai_diffaug.labels import paint_label
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.provenance import DiffAugRecord, record_key
from monai_diffaug.roi import Roi, crop, paste, roi_around
from monai_diffaug.sampling.inpaint import inpaint_latents
from monai_diffaug.sampling.noise import slice_noise
from monai_diffaug.seeding import draw_seed, slice_generators
from monai_diffaug.slices import PLANES, from_slices, slice_plane, to_slices, touched

__all__ = ["DiffusionLocalInpaint", "DiffusionLocalInpaintD", "DiffusionLocalInpaintDict", "DiffusionLocalInpaintd", "Edit"]

logger = logging.getLogger(__name__)

ON_ERROR = ("raise", "passthrough")
STOCHASTIC_STEP = 1  # the ``purpose`` of the generators that stochastic schedulers draw from
SOFT_WIDTH_REFERENCE_PX = 512


class Edit(NamedTuple):
    """What one edit returns: the image, the label (None when none was given) and the record."""

    image: NdarrayOrTensor
    label: NdarrayOrTensor | None
    record: dict[str, str | int | float | bool]


class _Patch(NamedTuple):
    """One touched slice, cropped to the model's size."""

    position: int
    roi: Roi
    soft: Tensor  # (h, w) composite weights on the slice
    image: Tensor  # (3, size, size) in [-1, 1]
    hard: Tensor  # (1, size, size) the UNet's mask
    weights: Tensor  # (1, size, size) soft mask of the sampler


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
        _check(0.0 < strength <= 1.0, f"strength must be in (0, 1], got {strength}")
        _check(num_inference_steps >= 1, f"num_inference_steps must be >= 1, got {num_inference_steps}")
        _check(0.0 <= noise_rho <= 1.0, f"noise_rho must be in [0, 1], got {noise_rho}")
        _check(plane in PLANES, f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
        _check(soft_mode in SOFT_MODES, f"soft_mode must be one of {', '.join(SOFT_MODES)}, got {soft_mode!r}")
        _check(soft_width >= 0, f"soft_width must be >= 0 pixels, got {soft_width}")
        _check(slice_batch_size >= 1, f"slice_batch_size must be >= 1, got {slice_batch_size}")
        _check(roi_context >= 1.0, f"roi_context must be >= 1, got {roi_context}")
        _check(on_error in ON_ERROR, f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
        _check(window is None or len(window) == 2, f"window must be (low, high), got {window}")
        self.spec = spec_of("inpainter", model, dtype)
        self.strength = strength
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.negative_prompt = negative_prompt
        self.noise_rho = noise_rho
        self.window = None if window is None else Window(float(window[0]), float(window[1]))
        self.plane = plane
        self.soft_width = soft_width
        self.soft_mode = soft_mode
        self.label_value = label_value
        self.slice_batch_size = slice_batch_size
        self.roi = roi
        self.roi_context = roi_context
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

    def apply(
        self, img: NdarrayOrTensor, mask: NdarrayOrTensor, prompt: str, label: NdarrayOrTensor | None = None, *, seed: int
    ) -> Edit:
        """Repaint with a given seed: the same inputs and seed give the same output, whatever the slice batch size."""
        record = DiffAugRecord(seed=seed, prompt=prompt, model=self.spec.source, tries=1)
        try:
            image, n_slices, reason = self._repaint(img, mask, prompt, seed)
        except (ValueError, RuntimeError, OSError) as error:
            if self.on_error == "raise":
                raise
            logger.warning("left a sample untouched: %s", error)
            image, n_slices, reason = None, 0, f"{type(error).__name__}: {error}"
        if image is None:
            record.reason = reason
            return Edit(img, label, record.as_dict())
        record.applied, record.n_slices = True, n_slices
        return Edit(image, self._paint(label, mask, img), record.as_dict())

    def _paint(self, label: NdarrayOrTensor | None, mask: NdarrayOrTensor, img: NdarrayOrTensor) -> NdarrayOrTensor | None:
        if label is None:
            return None
        check_grid("label", label, img)
        painted = paint_label(_plain(label), _plain(mask).to(_plain(label).device), self.label_value)
        return _like(painted, label)

    @torch.no_grad()
    def _repaint(self, img: NdarrayOrTensor, mask: NdarrayOrTensor, prompt: str, seed: int) -> tuple[NdarrayOrTensor | None, int, str]:
        """(image or None when nothing was done, number of slices, reason)."""
        check_image(img)
        check_grid("mask", mask, img)
        volume, region = _plain(img), _plain(mask)
        plane = slice_plane(img.affine.cpu().numpy() if isinstance(img, MetaTensor) else None, self.plane, volume.ndim - 1)
        slices, masks = to_slices(volume, plane), to_slices(region, plane).to(volume.device)
        indices = touched(masks)
        if not indices:
            return None, 0, "empty mask"
        if volume.dtype.is_floating_point and not bool(torch.isfinite(volume).all()):
            raise ValueError("the image has non-finite voxels (NaN or infinity); replace them first, e.g. with torch.nan_to_num")
        window = self.window or window_of(volume)
        model = shared_model(self.spec, self.device or volume.device, load_inpainter)
        patches = [self._patch(model, slices[i], masks[i, 0], i, window) for i in indices]
        repainted = self._generate(model, patches, prompt, seed)
        if not bool(torch.isfinite(repainted).all()):
            return None, 0, "the model returned non-finite values"
        result = slices.clone()
        for patch, picture in zip(patches, repainted, strict=True):
            result[patch.position] = self._composite(slices[patch.position], picture, patch, window)
        return _like(from_slices(result, plane).contiguous(), img), len(indices), ""

    def _patch(self, model: Inpainter, image: Tensor, mask: Tensor, index: int, window: Window) -> _Patch:
        """Crop one slice (C, h, w) and its mask (h, w) to what the model sees."""
        height, width = mask.shape
        if self.roi:
            roi, size = roi_around(mask, model.size_px, self.roi_context), model.size_px
        else:
            side = max(height, width)
            side = -(-side // model.multiple_px) * model.multiple_px
            roi, size = Roi((height - side) // 2, (width - side) // 2, side), side
        soft = soft_mask(mask, self.soft_width * roi.side / SOFT_WIDTH_REFERENCE_PX, self.soft_mode)
        seen = crop(window.to_model(image), roi, size).expand(3, -1, -1)
        weights = crop(soft[None], roi, size)
        support = (weights > 0.5) if self.soft_width == 0 else (weights > 1e-3)
        if not bool(support.any()):  # thinner than a pixel of the model: keep what the square touches
            support = weights > 0
        return _Patch(index, roi, soft, seen, support.float(), weights)

    def _generate(self, model: Inpainter, patches: list[_Patch], prompt: str, seed: int) -> Tensor:
        """(S, 3, size, size) float32: the slices in batches; a batch that does not fit into memory is halved."""
        size = patches[0].image.shape[-1] // model.factor
        indices = [patch.position for patch in patches]
        noise = slice_noise(seed, indices, (model.vae.config.latent_channels, size, size), self.noise_rho)
        generators = slice_generators(seed, indices, purpose=STOCHASTIC_STEP)
        done: list[Tensor] = []
        start, batch_size = 0, self.slice_batch_size
        while start < len(patches):
            stop = min(start + batch_size, len(patches))
            try:
                done.append(self._generate_batch(model, patches[start:stop], noise[start:stop], generators[start:stop], prompt))
            except torch.OutOfMemoryError:
                if stop - start == 1:
                    raise
                batch_size = (stop - start) // 2
                logger.warning("out of memory: going on with %d slices a batch", batch_size)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                generators = slice_generators(seed, indices, purpose=STOCHASTIC_STEP)
                continue
            start = stop
        return torch.cat(done)

    def _generate_batch(
        self, model: Inpainter, patches: list[_Patch], noise: Tensor, generators: list[torch.Generator], prompt: str
    ) -> Tensor:
        count = len(patches)
        image = torch.stack([p.image for p in patches]).to(model.device)
        hard = torch.stack([p.hard for p in patches]).to(model.device)
        pictures = torch.cat([image, image * (hard < 0.5)]) if model.takes_mask else image
        latents = model.encode(pictures)
        guided = self.guidance_scale > 1.0
        context = model.encode_text([prompt]).expand(count, -1, -1)
        negative = model.encode_text([self.negative_prompt]).expand(count, -1, -1) if guided else None
        soft = None
        if self.soft_width > 0:
            weights = torch.stack([p.weights for p in patches]).to(model.device)
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
            guidance_scale=self.guidance_scale,
            num_inference_steps=self.num_inference_steps,
            strength=self.strength,
            generators=generators,
        )
        return model.decode(result)

    def _composite(self, image: Tensor, picture: Tensor, patch: _Patch, window: Window) -> Tensor:
        """Put one generated picture (3, size, size) back into its slice (C, h, w)."""
        picture = picture.to(image.device).clamp(-1, 1)
        if image.shape[0] == 1:
            picture = picture.mean(0, keepdim=True)
        canvas = paste(image.float(), window.to_image(picture), patch.roi)
        return composite(image, canvas, patch.soft[None])


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


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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
