"""``EraseLesion`` and ``EraseLesiond``: repaint the lesions of a label as normal tissue, and clear their label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.data.utils import affine_to_spacing
from monai.transforms.transform import MapTransform
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, Noise
from monai_diffaug.edit.record import DiffAugRecord
from monai_diffaug.edit.request import Edit
from monai_diffaug.geometry.channels import MANY_CHANNELS
from monai_diffaug.geometry.grids import affine_of, check_grid, check_image, like, plain, required
from monai_diffaug.masks.labels import check_class_ids, check_label_value, class_ids, paint_label, voxels_of, voxels_of_any
from monai_diffaug.masks.margin import with_margin
from monai_diffaug.prompts import NORMAL
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.nothing_found import NothingFound
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = ["EraseLesion", "EraseLesionD", "EraseLesionDict", "EraseLesiond"]

PROMPT_KEY = "prompt"  # in the sample that the edit gets; the user's item of that name is not touched


class EraseLesiond(SeededTransform, MapTransform):
    """Repaint the lesions of the label as normal tissue and clear their label: a background, or a control without a lesion.

    The mask is the lesions and a margin around them, so that their rim goes too. The validator judges the result, turned round
    (``NothingFound``): it is accepted when nothing is found under the mask, else another seed is tried. If no candidate is accepted, image
    and label stay as they were. Writes image, label, mask and the record ``{key}_diffaug``, with the same keys whether it was triggered
    or not; the score of the record is the share of the mask that is free of predictions.

    Args:
        keys: images, each (C, H, W[, D]); those of one sample share label and mask, and are edited together or not at all.
        label_key: class ids (1, H, W[, D]) on the same grid.
        mask_key: key of the mask (1, H, W[, D]) uint8 that is written: the repainted region; empty where nothing was erased.
        prompt: text for the inside of the mask. Name modality and anatomy, e.g. "CT of abdomen, normal tissue".
        label_values: class ids of the lesions; None means all above 0 that are not in ``keep_values``.
        keep_values: class ids of organs, which keep their label. The margin may lie on them; it stays clear of all other labelled voxels.
        background_value: class id that the lesions get in the label: 0, or the organ's.
        margin_mm: width of the margin in mm (pixels without an affine).
        max_tries: largest number of candidates; the first accepted one is taken.
        validator: source of the validator, or a ready ``LatentValidate``, see ``NothingFound``; None accepts the first candidate unseen.
        model: source of the inpainter, or a ready ``DiffusionLocalInpaint`` with other options, whose steps, window, plane, device and
            ``on_error`` then count.
        num_inference_steps, window, plane, device, on_error: as in ``DiffusionLocalInpaint``. The slices of a volume share their noise,
            else no slice would continue its neighbour.
        prob: probability of being applied.
        allow_missing_keys: skip images that a sample lacks.

    Raises:
        ValueError: an option out of range.

    >>> label = torch.zeros(1, 64, 64)
    >>> label[:, 24:40, 24:40] = 1
    >>> sample = {"image": torch.rand(1, 64, 64), "label": label}
    >>> erase = EraseLesiond("image", prompt="ultrasound of breast, normal tissue", num_inference_steps=2, validator=None)
    >>> erased = erase.set_random_state(seed=0)(sample)
    >>> erased["image_diffaug"]["applied"], bool(erased["label"].any()), int(erased["mask"].sum()) > 16 * 16
    (True, False, True)
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        label_key: str = "label",
        mask_key: str = "mask",
        prompt: str = NORMAL,
        label_values: Sequence[int] | None = None,
        keep_values: Sequence[int] = (),
        background_value: int = 0,
        margin_mm: float = 3.0,
        max_tries: int = 3,
        validator: Any = "tiny",
        model: Any = "tiny",
        num_inference_steps: int = 12,
        window: tuple[float, float] | None = None,
        plane: str = "axial",
        device: torch.device | str | None = None,
        on_error: str = "raise",
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        SeededTransform.__init__(self, prob)
        if margin_mm < 0:
            raise ValueError(f"margin_mm must be >= 0, got {margin_mm}")
        self.label_values = None if label_values is None else tuple(int(value) for value in label_values)
        self.keep_values = tuple(int(value) for value in keep_values)
        twice = sorted({*(self.label_values or ()), background_value} & {*self.keep_values} - {background_value})
        if twice:
            raise ValueError(f"class {twice[0]} is in label_values and in keep_values: it can be erased or kept")
        if self.label_values is not None and (not self.label_values or background_value in self.label_values or 0 in self.label_values):
            raise ValueError(
                f"label_values must name the classes of the lesions, without 0 and the background_value {background_value}, "
                f"got {self.label_values}; None means all above 0"
            )
        self.label_key, self.mask_key = label_key, mask_key
        self.prompt = prompt
        self.background_value = background_value
        self.margin_mm = margin_mm
        inpaint = DiffusionLocalInpaintd(
            self.keys,
            mask_key=mask_key,
            prompt_key=PROMPT_KEY,
            num_inference_steps=num_inference_steps,
            window=window,
            plane=plane,
            device=device,
            on_error=on_error,
            allow_missing_keys=allow_missing_keys,
            options=InpaintOptions(noise=Noise(rho=1.0)),
            model="tiny" if isinstance(model, DiffusionLocalInpaint) else model,
        )
        if isinstance(model, DiffusionLocalInpaint):
            inpaint.inpaint = model
        self.inpaint = inpaint
        self.judged = LatentValidated(
            self.keys,
            mask_key=mask_key,
            model=NothingFound("tiny" if validator is None else validator, window=window, plane=plane, device=device),
            inpaint=inpaint,
            on_reject="retry",
            max_tries=max_tries,
            allow_missing_keys=allow_missing_keys,
        )
        self.is_judged = validator is not None

    @property
    def statistics(self) -> dict[str, int]:
        """Number of samples "accepted" and "rejected", and of further candidates "retried", see ``LatentValidated``."""
        return self.judged.statistics

    def record_key(self, key: Hashable) -> str:
        """Key of the record of image ``key``."""
        return self.inpaint.record_key(key)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return self.edit(data, seed=self.seed, triggered=self._do_transform)

    def edit(self, data: Mapping[Hashable, Any], *, seed: int, triggered: bool = True) -> dict[Hashable, Any]:
        """Erase with a given seed, or only add the keys when not triggered; no random numbers are drawn from the instance.

        Raises:
            KeyError: the sample has no label.
            GridMismatchError: the label is on another grid than an image, or has several channels.
            ValueError: a label that cannot hold ``background_value`` or has voxels that are no class ids.
        """
        d = dict(data)
        keys = list(self.key_iterator(d))
        label = required(d, self.label_key, "EraseLesiond erases what a label shows; name the key that holds it")
        for key in keys:
            check_image(d[key], MANY_CHANNELS)
            check_grid(f"label {self.label_key!r}", label, d[key])
        if not keys:
            return d
        lesions, mask = self.regions(label, affine_of(d[keys[0]]))
        if triggered and bool(lesions.any()):
            d, applied = self.repaint(d, mask, seed)
            if applied:
                d[self.label_key] = like(paint_label(plain(label), lesions, self.background_value), label)
            return d
        return self.left(d, seed, "the label shows no lesion to erase" if triggered else "not triggered")

    def repaint(self, data: Mapping[Hashable, Any], mask: Tensor, seed: int) -> tuple[dict[Hashable, Any], bool]:
        """The sample with images repainted as normal tissue under a mask (1, H, W[, D]) bool; and whether that was applied."""
        d = dict(data)
        keys = list(self.key_iterator(d))
        inner = {**{key: d[key] for key in keys}, self.mask_key: _as_mask(mask, d[keys[0]]), PROMPT_KEY: self.prompt}
        edited = self.judged.set_random_state(seed)(inner) if self.is_judged else self.inpaint.edit(inner, seed=seed)
        applied = all(edited[self.record_key(key)]["applied"] for key in keys)
        for key in keys:
            d[key], d[self.record_key(key)] = edited[key], edited[self.record_key(key)]
        d[self.mask_key] = _as_mask(mask if applied else torch.zeros_like(mask), data[keys[0]])
        return d, applied

    def left(self, data: Mapping[Hashable, Any], seed: int, reason: str) -> dict[Hashable, Any]:
        """The sample as it is, with an empty mask and the records of images that were not edited."""
        d = dict(data)
        keys = list(self.key_iterator(d))
        record = DiffAugRecord(seed=seed, prompt=self.prompt, model=self.inpaint.inpaint.spec.source, reason=reason)
        d.update({self.record_key(key): record.as_dict() for key in keys})
        d[self.mask_key] = _as_mask(torch.zeros(plain(d[keys[0]])[:1].shape), d[keys[0]])
        return d

    def regions(self, label: NdarrayOrTensor, affine: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The lesions of a label (1, H, W[, D]), and the mask that is repainted: the lesions and their margin; both bool.

        ``affine`` is that of the grid, (4, 4); None takes the label's, if it has one.
        """
        ids = plain(label)
        check_label_value(label.dtype, self.background_value)
        if self.label_values is not None:
            check_class_ids(ids, self.label_values)
        ids = class_ids(ids) if ids.dtype.is_floating_point else ids
        kept = voxels_of_any(ids, self.keep_values)
        lesions = voxels_of(ids, None) & ~kept if self.label_values is None else voxels_of_any(ids, self.label_values)
        if self.background_value:
            background = voxels_of(ids, self.background_value)
            lesions, kept = lesions & ~background, kept | background
        affine = affine_of(label) if affine is None else affine
        spacing = [1.0] * (ids.ndim - 1) if affine is None else affine_to_spacing(affine).tolist()[: ids.ndim - 1]
        others = (ids != 0) & ~kept & ~lesions
        return lesions, with_margin(lesions, self.margin_mm, spacing) & ~others


EraseLesionD = EraseLesionDict = EraseLesiond


class EraseLesion(SeededTransform):
    """The array form of ``EraseLesiond``: repaint the lesions of a label as normal tissue, and clear their label.

    Args:
        prompt: text for the inside of the mask, e.g. "CT of abdomen, normal tissue".
        label_values, keep_values, background_value, margin_mm: the lesions, as in ``EraseLesiond``.
        max_tries, validator, model, num_inference_steps, window, plane, device, on_error, prob: as in ``EraseLesiond``.

    >>> image, label = torch.rand(1, 64, 64), torch.zeros(1, 64, 64)
    >>> label[:, 24:40, 24:40] = 2
    >>> erase = EraseLesion("MRI of brain, normal tissue", background_value=1, num_inference_steps=2, validator=None)
    >>> edit = erase.set_random_state(seed=0)(image, label)
    >>> edit.record["applied"], edit.label.unique().tolist()
    (True, [0.0, 1.0])
    """

    def __init__(
        self,
        prompt: str = NORMAL,
        *,
        label_values: Sequence[int] | None = None,
        keep_values: Sequence[int] = (),
        background_value: int = 0,
        margin_mm: float = 3.0,
        max_tries: int = 3,
        validator: Any = "tiny",
        model: Any = "tiny",
        num_inference_steps: int = 12,
        window: tuple[float, float] | None = None,
        plane: str = "axial",
        device: torch.device | str | None = None,
        on_error: str = "raise",
        prob: float = 1.0,
    ) -> None:
        SeededTransform.__init__(self, prob)
        self.erase = EraseLesiond(
            "image",
            prompt=prompt,
            label_values=label_values,
            keep_values=keep_values,
            background_value=background_value,
            margin_mm=margin_mm,
            max_tries=max_tries,
            validator=validator,
            model=model,
            num_inference_steps=num_inference_steps,
            window=window,
            plane=plane,
            device=device,
            on_error=on_error,
        )

    def __call__(self, img: NdarrayOrTensor, label: NdarrayOrTensor, randomize: bool = True) -> Edit:
        """Erase the lesions of one image (C, H, W[, D]) with its label (1, H, W[, D]) of class ids on the same grid.

        Raises:
            GridMismatchError: the label is on another grid, or has several channels.
            ValueError: as ``EraseLesiond.edit``.
        """
        if randomize:
            self.randomize()
        return self.apply(img, label, seed=self.seed, triggered=self._do_transform)

    def apply(self, img: NdarrayOrTensor, label: NdarrayOrTensor, *, seed: int, triggered: bool = True) -> Edit:
        """Erase with a given seed: the same inputs and seed give the same output."""
        erased = self.erase.edit({"image": img, "label": label}, seed=seed, triggered=triggered)
        return Edit(erased["image"], erased["label"], erased[self.erase.record_key("image")])

    def region(self, label: NdarrayOrTensor) -> NdarrayOrTensor:
        """The mask that is repainted, (1, H, W[, D]) uint8 in the type of the label: its lesions and their margin."""
        return _as_mask(self.erase.regions(label)[1], label)


def _as_mask(mask: Tensor, target: NdarrayOrTensor) -> NdarrayOrTensor:
    converted: NdarrayOrTensor = convert_to_dst_type(mask[:1].to(torch.uint8), dst=target, dtype=torch.uint8)[0]
    return converted
