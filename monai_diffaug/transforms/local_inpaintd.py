"""The dictionary form of ``DiffusionLocalInpaint``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_diffaug.edit.denoise import Look
from monai_diffaug.edit.options import InpaintOptions
from monai_diffaug.edit.record import original_key, record_key
from monai_diffaug.edit.request import Edit, PendingEdit
from monai_diffaug.geometry.grids import required
from monai_diffaug.masks.labels import LabelValue
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = ["DiffusionLocalInpaintD", "DiffusionLocalInpaintDict", "DiffusionLocalInpaintd"]


class DiffusionLocalInpaintd(SeededTransform, MapTransform):
    """Repaint each image inside its mask, slice by slice; voxels outside the soft mask stay bit-identical.

    Writes the image, the label and a record ``{key}_diffaug`` (see ``DiffAugRecord``), with the same keys whether it was triggered or
    not. The arguments that are not listed here are those of ``DiffusionLocalInpaint``.

    Args:
        keys: images to repaint, each (C, H, W[, D]), any intensity unit; those of one sample share mask, prompt and label.
        mask_key: region to repaint on the same grid; non-zero means repaint.
        prompt_key: the text, as ``TextPromptd`` writes it.
        label_key: label to paint ``label_value`` into; None leaves labels alone.
        options: see ``InpaintOptions``; ``ControlNet(key=...)`` names the control image, as ``EdgeMapd`` writes it.
        prob: probability of being applied.
        keep_original: pass image, label and mask on untouched, by reference, as ``{key}_original`` for a ``LatentValidated`` that
            follows and takes them out again.
        allow_missing_keys: skip images that a sample lacks, and repaint samples without a label all the same.

    Raises:
        KeyError: the sample has no mask or no prompt, or no label or control image although a key for it is set.

    >>> import torch
    >>> mask = torch.zeros(1, 64, 64)
    >>> mask[:, 24:40, 24:40] = 1
    >>> sample = {"image": torch.rand(1, 64, 64), "label": torch.zeros(1, 64, 64), "mask": mask, "prompt": "CT of liver, cyst"}
    >>> edit = DiffusionLocalInpaintd("image", label_key="label", label_value=2, num_inference_steps=2).set_random_state(seed=0)
    >>> sample = edit(sample)
    >>> sample["image_diffaug"]["applied"], bool((sample["label"] == 2 * mask).all())
    (True, True)
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mask_key: str = "mask",
        prompt_key: str = "prompt",
        label_key: str | None = None,
        label_value: LabelValue = 1,
        model: Any = "tiny",
        strength: float = 1.0,
        num_inference_steps: int = 12,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        window: Sequence[float] | None = None,
        plane: str = "axial",
        options: InpaintOptions | None = None,
        device: str | torch.device | None = None,
        prob: float = 1.0,
        keep_original: bool = False,
        on_error: str = "raise",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        SeededTransform.__init__(self, prob)
        self.inpaint = DiffusionLocalInpaint(
            model,
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            window=window,
            plane=plane,
            label_value=label_value,
            options=options,
            on_error=on_error,
            device=device,
        )
        self.mask_key = mask_key
        self.prompt_key = prompt_key
        self.label_key = label_key
        self.keep_original = keep_original

    @property
    def control_key(self) -> str | None:
        """Key of the control image; None draws it from image and mask."""
        return self.inpaint.settings.options.control_key

    @property
    def record_postfix(self) -> str:
        """Postfix of the record's key."""
        return self.inpaint.settings.options.record_postfix

    def record_key(self, key: Hashable) -> str:
        """Key of the record of image ``key``."""
        return record_key(str(key), self.record_postfix)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return self.edit(data, seed=self.seed, triggered=self._do_transform)

    def edit(self, data: Mapping[Hashable, Any], *, seed: int, triggered: bool = True) -> dict[Hashable, Any]:
        """Repaint with a given seed, or only add the keys when not triggered; no random numbers are drawn."""
        if triggered:
            return self.finish(data, self.denoise(data, seed=seed))
        d = self._with_originals(data)
        for key in self.key_iterator(d):
            self.inpaint.seed = seed
            d[self.record_key(key)] = self.inpaint.untouched(d.get(self.prompt_key, ""), "not triggered")
        return d

    def denoise(self, data: Mapping[Hashable, Any], *, seed: int, look: Look | None = None) -> dict[Hashable, PendingEdit]:
        """Repaint each image in latent space and decode nothing; ``look`` as in ``monai_diffaug.edit.denoise``."""
        d = dict(data)
        label = self._label(d)
        pending: dict[Hashable, PendingEdit] = {}
        for key in self.key_iterator(d):
            mask, prompt = _written_by(d, self.mask_key, "MedSAMMaskd"), _written_by(d, self.prompt_key, "TextPromptd")
            control = None if self.control_key is None else _written_by(d, self.control_key, "EdgeMapd")
            (pending[key],) = self.inpaint.denoise_batch([d[key]], [mask], [prompt], [label], [control], seeds=[seed], look=look)
        return pending

    def finish(self, data: Mapping[Hashable, Any], pending: Mapping[Hashable, PendingEdit]) -> dict[Hashable, Any]:
        """Decode what ``denoise`` made of ``data``."""
        d = self._with_originals(data)
        for key, edit in agreed({key: self.inpaint.finish_batch([each])[0] for key, each in pending.items()}).items():
            d[self.record_key(key)] = edit.record
            if edit.record["applied"]:
                d[key] = edit.image
                if edit.label is not None:
                    d[self.label_key] = edit.label
        return d

    def leave(self, data: Mapping[Hashable, Any], pending: Mapping[Hashable, PendingEdit]) -> dict[Hashable, Any]:
        """Return ``data`` as it is, with the records of candidates that are not decoded; replaces ``finish``."""
        d = self._with_originals(data)
        d.update({self.record_key(key): self.inpaint.leave(each).record for key, each in pending.items()})
        return d

    def _label(self, d: Mapping[Hashable, Any]) -> Any:
        """The label. It must be present: a lesion painted into the image alone would be learned as background."""
        if self.label_key is None or (self.allow_missing_keys and self.label_key not in d):
            return None
        return _written_by(d, self.label_key, "LoadImaged")

    def _with_originals(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of the sample; with ``keep_original`` it also holds the untouched image, label and mask."""
        d = dict(data)
        if self.keep_original:
            for key in (*self.key_iterator(d), self.label_key, self.mask_key):
                if key is not None and key in data:
                    d[original_key(key)] = data[key]
        return d


DiffusionLocalInpaintD = DiffusionLocalInpaintDict = DiffusionLocalInpaintd


def agreed(edits: Mapping[Hashable, Edit]) -> dict[Hashable, Edit]:
    """The edits of the images of one sample, which share a label: if one was not applied, none is, and all records say so."""
    failed = {key: edit.record["reason"] for key, edit in edits.items() if not edit.record["applied"]}
    if not failed:
        return dict(edits)
    key, reason = next(iter(failed.items()))
    withdrawn: dict[str, str | int | float | bool] = {"applied": False, "n_slices": 0, "reason": f"{key} was not edited: {reason}"}
    return {key: edit if key in failed else edit._replace(record={**edit.record, **withdrawn}) for key, edit in edits.items()}


def _written_by(d: Mapping[Hashable, Any], key: str, writer: str) -> Any:
    return required(d, key, f"put {writer} before, or name the key that holds it")
