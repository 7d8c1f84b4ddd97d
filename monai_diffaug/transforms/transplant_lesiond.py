"""The dictionary form of ``TransplantLesion``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform

from monai_diffaug.data.donor_bank import DonorBank
from monai_diffaug.edit.denoise import Look
from monai_diffaug.edit.record import original_key, record_key
from monai_diffaug.edit.transplant_options import Transplant, TransplantRecord
from monai_diffaug.geometry.grids import plain, required
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.seeded import SeededTransform
from monai_diffaug.transforms.transplant_lesion import PendingTransplant, Transplanted, TransplantLesion

__all__ = ["TransplantLesionD", "TransplantLesionDict", "TransplantLesiond"]


class TransplantLesiond(SeededTransform, MapTransform):
    """Put a real lesion of another image on free tissue of each image, and repaint it so that it belongs there.

    Writes the image, the label, the mask and a record ``{key}_diffaug`` (see ``TransplantRecord``, which names the donor), with the same
    keys whether it was triggered or not. The arguments that are not listed here are those of ``TransplantLesion``.

    Args:
        keys: the image (C, H, W[, D]), any intensity unit; one key, since a donor has the pixels of one image.
        bank: the donors, a ``DonorBank`` or the file of a saved one, made of training images alone.
        mask_key: where the outline of the lesion is written, (1, H, W[, D]) uint8; empty when nothing was transplanted.
        label_key: class ids; the lesion stays clear of all that are not 0 (see ``Transplant.background``) and is painted in.
        label_value: class id that is painted; None is the donor's own.
        group_key: patient or group of the sample; donors of the same group are never taken. None leaves out donors of the same file only.
        region_key: region in which the lesion has to lie, e.g. an organ's mask (above 0); None means tissue.
        prompt_key: text for the model, as ``TextPromptd`` writes it; None uses the donor's words.
        keep_original: pass image, label and an empty mask on as ``{key}_original`` for a ``LatentValidated`` that follows.
        allow_missing_keys: skip samples that lack the image, and edit samples without a label all the same.

    Raises:
        KeyError: the sample has no label, region, group, prompt or likelihood map although a key for it is set.
        ValueError: more than one key.

    >>> label = torch.zeros(1, 64, 64)
    >>> label[:, 20:32, 20:30] = 2
    >>> image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    >>> bank = DonorBank.of([{"image": image + label, "label": label, "finding": "cyst", "patient": "a"}], group_key="patient")
    >>> move = TransplantLesiond("image", bank=bank, label_key="label", group_key="patient", strength=0).set_random_state(seed=1)
    >>> sample = move({"image": image, "label": label * 0, "patient": "b"})
    >>> sample["image_diffaug"]["donor_group"], bool((sample["label"] == 2 * sample["mask"]).all())
    ('a', True)
    """

    writes_mask = True  # in addition to image, label and record

    record_type = TransplantRecord

    def __init__(
        self,
        keys: KeysCollection,
        *,
        bank: DonorBank | str | Path,
        mask_key: str = "mask",
        label_key: str | None = None,
        label_value: int | None = None,
        group_key: str | None = None,
        region_key: str | None = None,
        prompt_key: str | None = None,
        model: Any = "tiny",
        strength: float = 0.3,
        transplant: Transplant | None = None,
        window: Sequence[float] | None = None,
        plane: str = "axial",
        device: str | torch.device | None = None,
        prob: float = 1.0,
        keep_original: bool = False,
        on_error: str = "raise",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        SeededTransform.__init__(self, prob)
        if len(self.keys) != 1:
            raise ValueError(f"a donor has the pixels of one image, so keys must be one key, got {', '.join(map(str, self.keys))}")
        self.transplant = TransplantLesion(
            bank,
            model=model,
            strength=strength,
            label_value=label_value,
            transplant=transplant,
            window=window,
            plane=plane,
            on_error=on_error,
            device=device,
        )
        self.mask_key, self.label_key, self.group_key = mask_key, label_key, group_key
        self.region_key, self.prompt_key = region_key, prompt_key
        self.keep_original = keep_original

    @property
    def inpaint(self) -> DiffusionLocalInpaint | None:
        """The diffusion part; None with ``strength=0``."""
        return self.transplant.inpaint

    @property
    def record_postfix(self) -> str:
        """Postfix of the record's key."""
        return self.transplant.options.record_postfix

    def record_key(self, key: Hashable) -> str:
        """Key of the record of image ``key``."""
        return record_key(str(key), self.record_postfix)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return self.edit(data, seed=self.seed, triggered=self._do_transform)

    def edit(self, data: Mapping[Hashable, Any], *, seed: int, triggered: bool = True) -> dict[Hashable, Any]:
        """Transplant with a given seed, or only add the keys when not triggered; no random numbers are drawn."""
        if triggered:
            return self.finish(data, self.denoise(data, seed=seed))
        results = {}
        for key in self.key_iterator(dict(data)):
            results[key] = self.transplant.untouched(data[key], self._label(data), seed, "not triggered")
        return self._written(data, results)

    def denoise(self, data: Mapping[Hashable, Any], *, seed: int, look: Look | None = None) -> dict[Hashable, PendingTransplant]:
        """Paste, repaint in latent space and decode nothing; ``look`` as in ``monai_diffaug.edit.denoise``."""
        d = dict(data)
        pending = {}
        for key in self.key_iterator(d):
            region, group, prompt = (
                None if name is None else required(d, name) for name in (self.region_key, self.group_key, self.prompt_key)
            )
            pending[key] = self.transplant.denoise(
                d[key],
                self._label(d),
                region,
                self._likelihood(d, key),
                group="" if group is None else str(group),
                prompt=prompt,
                seed=seed,
                look=look,
            )
        return pending

    def finish(self, data: Mapping[Hashable, Any], pending: Mapping[Hashable, PendingTransplant]) -> dict[Hashable, Any]:
        """Decode what ``denoise`` made of ``data``."""
        return self._written(data, {key: self.transplant.finish(each) for key, each in pending.items()})

    def leave(self, data: Mapping[Hashable, Any], pending: Mapping[Hashable, PendingTransplant]) -> dict[Hashable, Any]:
        """Return ``data`` as it is, with the records of candidates that are not decoded; replaces ``finish``."""
        return self._written(data, {key: self.transplant.leave(each) for key, each in pending.items()})

    def _written(self, data: Mapping[Hashable, Any], results: Mapping[Hashable, Transplanted]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, result in results.items():
            if self.keep_original:
                d[original_key(key)] = data[key]
                d[original_key(self.mask_key)] = self.transplant.untouched(data[key], None, 0, "").mask
                if result.label is not None and self.label_key is not None:
                    d[original_key(self.label_key)] = data[self.label_key]
            d[key], d[self.mask_key], d[self.record_key(key)] = result.image, result.mask, result.record
            if result.label is not None:
                d[self.label_key] = result.label
        return d

    def _label(self, d: Mapping[Hashable, Any]) -> Any:
        """The label. It must be present: a lesion in the image alone would be learned as background."""
        if self.label_key is None or (self.allow_missing_keys and self.label_key not in d):
            return None
        return required(d, self.label_key)

    def _likelihood(self, d: Mapping[Hashable, Any], key: Hashable) -> Any:
        place = self.transplant.options.place
        if place is None:
            return None
        return required(d, place) if isinstance(place, str) else place(plain(d[key]))


TransplantLesionD = TransplantLesionDict = TransplantLesiond
