"""The dictionary form of ``DiffusionLocalInpaint``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_diffaug.edit.options import InpaintOptions
from monai_diffaug.edit.record import original_key, record_key
from monai_diffaug.edit.repaint import Look
from monai_diffaug.geometry.grids import required
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint, Edit, Sampled
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = ["DiffusionLocalInpaintD", "DiffusionLocalInpaintDict", "DiffusionLocalInpaintd"]


class DiffusionLocalInpaintd(SeededTransform, MapTransform):
    """Repaint each image inside its mask, slice by slice; voxels outside the soft mask stay bit-identical.

    Writes the image, the label and a record ``{key}_diffaug`` (see ``monai_diffaug.edit.record``), with the same keys
    whether it was triggered or not. The other arguments are those of ``DiffusionLocalInpaint``.

    Args:
        keys: images to repaint, each (C, H, W[, D]), any intensity unit.
        mask_key: region to repaint on the same grid; non-zero means repaint.
        prompt_key: the text, as ``TextPromptd`` writes it.
        label_key: label to paint ``label_value`` into; None leaves labels alone.
        keep_original: hand image, label and mask on untouched, by reference, as ``{key}_original`` for a
            ``LatentValidated`` that follows and takes them out again.
        prob: probability of being applied.
        allow_missing_keys: skip images that a sample lacks, and repaint samples without a label all the same.

    Raises:
        KeyError: the sample has no mask or no prompt, or no label or control where there is a key for it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mask_key: str = "mask",
        prompt_key: str = "prompt",
        label_key: str | None = None,
        label_value: int = 1,
        model: Any = "tiny",
        strength: float = 1.0,
        num_inference_steps: int = 12,
        guidance_scale: float = 3.0,
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
            device=device,
            on_error=on_error,
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
        """Where the record of the edit of image ``key`` is written."""
        return record_key(str(key), self.record_postfix)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return self.edit(data, seed=self.seed, triggered=self._do_transform)

    def edit(self, data: Mapping[Hashable, Any], *, seed: int, triggered: bool = True) -> dict[Hashable, Any]:
        """The deterministic part: repaint with a given seed, or only add the keys when not triggered."""
        if triggered:
            return self.finish(data, self.sample(data, seed=seed))
        d = self._with_originals(data)
        for key in self.key_iterator(d):
            self.inpaint.seed = seed
            d[self.record_key(key)] = self.inpaint.untouched(d.get(self.prompt_key, ""), "not triggered")
        return d

    def sample(self, data: Mapping[Hashable, Any], *, seed: int, look: Look | None = None) -> dict[Hashable, Sampled]:
        """The first part of ``edit``: each image repainted in latent space, nothing decoded; ``look`` as in ``sample_candidates``."""
        d = dict(data)
        label = self._label(d)
        sampled: dict[Hashable, Sampled] = {}
        for key in self.key_iterator(d):
            mask, prompt = _written_by(d, self.mask_key, "MedSAMMaskd"), _written_by(d, self.prompt_key, "TextPromptd")
            control = None if self.control_key is None else _written_by(d, self.control_key, "EdgeMapd")
            (sampled[key],) = self.inpaint.sample_batch([d[key]], [mask], [prompt], [label], [control], seeds=[seed], look=look)
        return sampled

    def finish(self, data: Mapping[Hashable, Any], sampled: Mapping[Hashable, Sampled]) -> dict[Hashable, Any]:
        """The second part of ``edit``: decode what ``sample`` made of ``data``."""
        d = self._with_originals(data)
        for key, edit in agreed({key: self.inpaint.finish_batch([one])[0] for key, one in sampled.items()}).items():
            d[self.record_key(key)] = edit.record
            if edit.record["applied"]:
                d[key] = edit.image
                if edit.label is not None:
                    d[self.label_key] = edit.label
        return d

    def leave(self, data: Mapping[Hashable, Any], sampled: Mapping[Hashable, Sampled]) -> dict[Hashable, Any]:
        """In place of ``finish``: ``data`` as it is, with the records of candidates that nobody decodes."""
        return {**self._with_originals(data), **{self.record_key(key): self.inpaint.leave(one).record for key, one in sampled.items()}}

    def _label(self, d: Mapping[Hashable, Any]) -> Any:
        """The label, which has to be there: a lesion that is painted into the image alone would be taught as background."""
        if self.label_key is None or (self.allow_missing_keys and self.label_key not in d):
            return None
        return _written_by(d, self.label_key, "LoadImaged")

    def _with_originals(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of the sample; with ``keep_original`` its image, label and mask are handed on."""
        d = dict(data)
        if self.keep_original:
            for key in (*self.key_iterator(d), self.label_key, self.mask_key):
                if key is not None and key in data:
                    d[original_key(key)] = data[key]
        return d


DiffusionLocalInpaintD = DiffusionLocalInpaintDict = DiffusionLocalInpaintd


def agreed(edits: Mapping[Hashable, Edit]) -> dict[Hashable, Edit]:
    """The edits of the images of one sample, which share a label: where one came to nothing, the records of all say so."""
    failed = {key: edit.record["reason"] for key, edit in edits.items() if not edit.record["applied"]}
    if not failed:
        return dict(edits)
    key, reason = next(iter(failed.items()))
    given_up: dict[str, str | int | float | bool] = {"applied": False, "n_slices": 0, "reason": f"{key} was not edited: {reason}"}
    return {key: edit if key in failed else edit._replace(record={**edit.record, **given_up}) for key, edit in edits.items()}


def _written_by(d: Mapping[Hashable, Any], key: str, writer: str) -> Any:
    return required(d, key, f"put {writer} before, or name the key that holds it")
