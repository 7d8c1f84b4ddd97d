"""Preset that moves a lesion: ``relocate`` erases it, then paints or transplants one elsewhere."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform
from monai.transforms.utility.dictionary import DeleteItemsd
from monai.utils.type_conversion import convert_to_dst_type

from monai_diffaug.data.donor_bank import DonorBank
from monai_diffaug.edit.options import InpaintOptions, Noise
from monai_diffaug.edit.record import DiffAugRecord
from monai_diffaug.edit.signature import Described, named_options
from monai_diffaug.edit.transplant_options import Transplant
from monai_diffaug.geometry.grids import like, plain
from monai_diffaug.masks.labels import voxels_of_any
from monai_diffaug.presets.preset_keys import Finding, check_keys, normal_prompt
from monai_diffaug.transforms.erase_lesion import EraseLesiond
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.place_mask import PlaceMask, PlaceMaskd
from monai_diffaug.transforms.seeded import SeededTransform
from monai_diffaug.transforms.text_prompt import TextPromptd
from monai_diffaug.transforms.transplant_lesiond import TransplantLesiond

__all__ = ["ERASED", "FreePlaced", "Relocated", "relocate"]

ERASED = "erased"  # postfix of the record of the erased lesion
FREE_KEY, TAKEN_KEY = "place_free", "place_taken"  # items between the steps of the preset


class FreePlaced(MapTransform, Described):
    """Write where a new lesion may lie and where not, from an erased label and the mask of the erased lesion.

    Args:
        keys: the image.
        label_key: class ids (1, H, W[, D]), after erasing.
        keep_values: classes of organs, in which the lesion has to lie where the label shows some; else it lies in tissue.
        mask_key: the mask of the erased lesion; it is taken, so that the new lesion lies elsewhere.
    """

    def __init__(self, keys: KeysCollection, *, label_key: str, keep_values: Sequence[int] = (), mask_key: str = "mask") -> None:
        MapTransform.__init__(self, keys)
        self.label_key, self.keep_values, self.mask_key = label_key, tuple(keep_values), mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            label, image = plain(d[self.label_key]), plain(d[key])
            organs = voxels_of_any(label, self.keep_values)
            taken = ((label != 0) & ~organs) | (plain(d[self.mask_key]) != 0).to(label.device)
            free = (organs if bool(organs.any()) else PlaceMask().tissue(image).to(label.device)) & ~taken
            for name, region in ((FREE_KEY, free), (TAKEN_KEY, taken)):
                d[name] = convert_to_dst_type(region.to(torch.uint8), d[key], dtype=torch.uint8)[0]
        return d


class Relocated(SeededTransform, MapTransform):
    """Erase, then paint; a sample in which one of the two fails stays as it was.

    Args:
        keys: the image.
        erase: erases the lesion; its record has the postfix "erased".
        paint: writes image, label, mask, prompt and the record "{key}_diffaug".
        record_type: class of that record.
        prob: probability of being applied.
    """

    def __init__(
        self, keys: KeysCollection, *, erase: EraseLesiond, paint: Compose, record_type: type[DiffAugRecord], prob: float = 1.0
    ) -> None:
        MapTransform.__init__(self, keys)
        SeededTransform.__init__(self, prob)
        self.erase, self.paint = erase, paint
        self.record_type = record_type

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        key = self.keys[0]
        erased_key, painted_key = self.erase.record_key(key), f"{key}_diffaug"
        erased = self.erase.edit(data, seed=self.seed, triggered=self._do_transform)
        record = erased[erased_key]
        if not record["applied"]:
            reason = f"no lesion was erased: {record['reason']}" if self._do_transform else record["reason"]
            unpainted = {**self.record_type().as_dict(), **record, "reason": reason}
            return {**erased, "prompt": "", painted_key: unpainted}
        moved: dict[Hashable, Any] = self.paint.set_random_state(self.seed)(erased)
        if moved[painted_key]["applied"]:
            return moved
        mask = like(torch.zeros_like(plain(erased["mask"])), erased["mask"])
        restored = {**record, "applied": False, "n_slices": 0, "reason": "no lesion was painted elsewhere, so the image was restored"}
        written: dict[Hashable, Any] = {"mask": mask, "prompt": moved["prompt"], erased_key: restored, painted_key: moved[painted_key]}
        return {**data, **written}


@named_options
def relocate(
    image_key: str = "image",
    label_key: str = "label",
    *,
    modality: str,
    anatomy: str,
    finding: Finding = None,
    label_value: int = 1,
    keep_values: Sequence[int] = (),
    background_value: int = 0,
    place: PlaceMaskd | None = None,
    bank: DonorBank | str | Path | TransplantLesiond | None = None,
    num_inference_steps: int = 12,
    max_tries: int = 3,
    validator: Any = "tiny",
    window: tuple[float, float] | None = None,
    plane: str = "axial",
    model: Any = "tiny",
    device: str | None = None,
    prob: float = 0.5,
) -> Compose:
    """Relocate: erase the lesion, then paint one elsewhere, so that one labelled scan gives many; if one step fails nothing is changed.

    The record of the edit is ``{image_key}_diffaug``, that of the erased lesion ``{image_key}_erased``.

    Args:
        image_key, label_key: image and label; the lesion moves in both.
        modality, anatomy: words of both prompts.
        finding: the finding that is painted; None draws one for the anatomy.
        label_value: class id of the lesion.
        keep_values, background_value: the organ that the lesion lies in, see ``EraseLesiond``. The new lesion lies in the organs of
            ``keep_values`` where the label shows some.
        place: a ``PlaceMaskd`` with other outlines, sizes or regions; None draws random blobs, clear of all findings and of the old place.
        bank: donors: the new lesion is transplanted, not painted. A ``DonorBank``, its file, or a ready ``TransplantLesiond``, whose
            options then count. Donors with other patients' lesions only: give a ready one with ``group_key``.
        num_inference_steps: steps of the sampler.
        max_tries: largest number of candidates for erasing, and for painting.
        validator: source of the validator, or a ``LatentValidate`` with other thresholds.
        window: intensity range that the models see, see ``mila_tmgdiff``.
        plane: anatomical plane of the slices of a 3-D image; a given ``place`` has its own.
        model: source of the inpainter.
        device: where the models run; None is the device of the image.
        prob: probability of an edit.

    Raises:
        ValueError: an option out of range, or a key that the preset writes.

    >>> import torch
    >>> image, label = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) + 1, torch.zeros(1, 64, 64)
    >>> label[:, 10:22, 10:22] = 1
    >>> move = relocate(modality="ultrasound", anatomy="breast", num_inference_steps=1, max_tries=1, prob=1.0).set_random_state(0)
    >>> sorted(move({"image": image, "label": label}))
    ['image', 'image_diffaug', 'image_erased', 'label', 'mask', 'prompt']
    """
    check_keys(image_key, label_key)
    shared: dict[str, Any] = {"window": window, "plane": plane, "device": device}
    inpaint = DiffusionLocalInpaint(
        model, num_inference_steps=num_inference_steps, options=InpaintOptions(noise=Noise(rho=1.0), record_postfix=ERASED), **shared
    )
    erase = EraseLesiond(
        image_key,
        label_key=label_key,
        prompt=normal_prompt(modality, anatomy),
        label_values=[label_value],
        keep_values=keep_values,
        background_value=background_value,
        max_tries=max_tries,
        validator=validator,
        model=inpaint,
        **shared,
    )
    if bank is None:
        edit: Any = DiffusionLocalInpaintd(
            image_key, label_key=label_key, label_value=label_value, num_inference_steps=num_inference_steps, model=model, **shared
        )
        random_place = PlaceMaskd(image_key, region_key=FREE_KEY, label_key=TAKEN_KEY, plane=plane)
        placed: list[Any] = [random_place if place is None else place]
    else:
        edit = bank
        if not isinstance(bank, TransplantLesiond):
            edit = TransplantLesiond(
                image_key,
                bank=bank,
                label_key=label_key,
                label_value=label_value,
                region_key=FREE_KEY,
                transplant=Transplant(background=keep_values),
                model=model,
                **shared,
            )
        placed = []
    judged = LatentValidated(
        image_key,
        label_key=label_key,
        label_value=label_value,
        model=validator,
        inpaint=edit,
        on_reject="retry",
        max_tries=max_tries,
        **shared,
    )
    paint = Compose(
        [
            FreePlaced(image_key, label_key=label_key, keep_values=keep_values),
            *placed,
            TextPromptd("prompt", modality=modality, anatomy=anatomy, finding=finding),
            judged,
            DeleteItemsd([FREE_KEY, TAKEN_KEY]),
        ]
    )
    return Compose([Relocated(image_key, erase=erase, paint=paint, record_type=judged.record_type, prob=prob)])
