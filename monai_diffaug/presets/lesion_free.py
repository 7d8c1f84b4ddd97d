"""Preset that makes samples without a lesion: ``controls``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.transforms.compose import Compose

from monai_diffaug.edit.signature import named_options
from monai_diffaug.geometry.grids import plain
from monai_diffaug.masks.labels import voxels_of_any
from monai_diffaug.presets.preset_keys import check_keys, normal_prompt
from monai_diffaug.transforms.erase_lesion import EraseLesiond
from monai_diffaug.transforms.place_mask import PlaceMask

__all__ = ["ControlSampled", "controls"]


class ControlSampled(EraseLesiond):
    """``EraseLesiond``; in a sample without a lesion it repaints a place of normal tissue instead, and the label stays.

    A network then cannot tell samples with a lesion from others by the marks that repainting leaves.

    Args:
        keys: as in ``EraseLesiond``, like the other options.
        place: draws the place of normal tissue; it lies in the organs of ``keep_values`` where the label shows some.
    """

    def __init__(self, keys: str, *, place: PlaceMask | None = None, **options: Any) -> None:
        EraseLesiond.__init__(self, keys, **options)
        self.place = PlaceMask(plane=self.inpaint.inpaint.settings.plane) if place is None else place

    def edit(self, data: Mapping[Hashable, Any], *, seed: int, triggered: bool = True) -> dict[Hashable, Any]:
        """As ``EraseLesiond.edit``."""
        d = EraseLesiond.edit(self, data, seed=seed, triggered=triggered)
        key = self.keys[0]
        if not triggered or key not in d or bool(self.regions(data[self.label_key])[0].any()):
            return d
        label = plain(data[self.label_key])
        kept = voxels_of_any(label, {*self.keep_values, self.background_value} - {0})
        findings = (label != 0) & ~kept
        drawn = self.place.apply(d[key], kept if bool(kept.any()) else None, findings, seed=seed)
        mask = plain(drawn) != 0
        return self.repaint(d, mask, seed)[0] if bool(mask.any()) else self.left(d, seed, "no free place was found")


@named_options
def controls(
    image_key: str = "image",
    label_key: str = "label",
    *,
    modality: str,
    anatomy: str,
    label_values: Sequence[int] | None = None,
    keep_values: Sequence[int] = (),
    background_value: int = 0,
    margin_mm: float = 3.0,
    place: PlaceMask | None = None,
    num_inference_steps: int = 12,
    max_tries: int = 3,
    validator: Any = "tiny",
    window: tuple[float, float] | None = None,
    plane: str = "axial",
    model: Any = "tiny",
    device: str | None = None,
    prob: float = 0.3,
) -> Compose:
    """Controls: a share of the samples loses its lesions; samples without one get a place of repainted normal tissue.

    Args:
        image_key, label_key: image and label; the label of erased lesions is cleared.
        modality, anatomy: words of the prompt "{modality} of {anatomy}, normal tissue".
        label_values, keep_values, background_value, margin_mm, max_tries, validator: see ``EraseLesiond``.
        place: outlines, sizes and depth of the places of normal tissue; None draws random blobs in tissue.
        num_inference_steps: steps of the sampler.
        window: intensity range that the models see, see ``mila_tmgdiff``.
        plane: anatomical plane of the slices of a 3-D image; a given ``place`` has its own.
        model: source of the inpainter, or a ready ``DiffusionLocalInpaint``.
        device: where the models run; None is the device of the image.
        prob: share of the samples that are edited.

    Raises:
        ValueError: an option out of range, or a key that the preset writes.

    >>> import torch
    >>> image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    >>> label = torch.zeros(1, 64, 64)
    >>> label[:, 20:40, 20:40] = 1
    >>> erase = controls(modality="ultrasound", anatomy="breast", num_inference_steps=1, validator=None, prob=1.0)
    >>> [bool(erase({"image": image, "label": each})["label"].any()) for each in (label, 0 * label)]
    [False, False]
    """
    check_keys(image_key, label_key)
    return Compose(
        [
            ControlSampled(
                image_key,
                place=place,
                label_key=label_key,
                prompt=normal_prompt(modality, anatomy),
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
                prob=prob,
            )
        ]
    )
