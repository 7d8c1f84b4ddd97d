"""Preset that paints a lesion into normal tissue: DiffAug."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from monai.transforms.compose import Compose

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.edit.signature import named_options
from monai_diffaug.edit.validation_options import Dynamic
from monai_diffaug.models.validator_acceptance import accepts_real_lesions, strictness_of
from monai_diffaug.presets.preset_keys import Finding, check_keys
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.lesion_novelty import LesionNovelty
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.place_mask import PlaceMaskd
from monai_diffaug.transforms.text_prompt import TextPromptd

__all__ = ["diffaug"]


@named_options
def diffaug(
    image_key: str = "image",
    label_key: str = "label",
    *,
    modality: str,
    finding: Finding = None,
    anatomy: Finding = None,
    label_value: int = 1,
    place: PlaceMaskd | None = None,
    num_inference_steps: int = 12,
    max_tries: int = 3,
    validator: Any = None,
    dynamic: Dynamic | None = None,
    novelty: LesionNovelty | LesionBank | str | Path | None = None,
    screen: Any = None,
    window: tuple[float, float] | None = None,
    plane: str = "axial",
    model: Any = "tiny",
    device: str | None = None,
    prob: float = 0.5,
) -> Compose:
    """DiffAug: paint a lesion into normal tissue; keep it only if the latent validator finds it, else try another seed.

    Args:
        image_key, label_key: image and label; the lesion is placed clear of labelled pixels and painted into the label.
        modality, finding, anatomy: words of the prompt, see ``mila_tmgdiff``.
        label_value: class id that is painted.
        place: a ``PlaceMaskd`` with other outlines, sizes or regions, e.g. ``PlaceMaskd("image", label_key="label", bank=masks)``. None
            draws random blobs in tissue.
        num_inference_steps: steps of the sampler; 1 is DiffAug's single-step generation.
        max_tries: largest number of candidates; if none is accepted the sample stays as it was.
        validator: source of the validator (any segmenter can judge), or a ``LatentValidate`` with other thresholds. None is the embedded
            one; where it refuses most real lesions (CT, MRI, endoscopy, and modalities that were not measured) it gives a warning, and its
            verdict stands in the record but undoes nothing. "tiny" makes it decide there too, and so do ``dynamic``,
            ``novelty`` and ``screen``.
        dynamic: threshold that rises with the scores, see ``Dynamic``.
        novelty: the training lesions: copies of them are rejected, see ``LatentValidated``.
        screen: a ``Screen`` or its source, which rejects hopeless candidates after a quarter of their steps.
        window: intensity range that the models see, see ``mila_tmgdiff``.
        plane: anatomical plane of the slices of a 3-D image; a given ``place`` has its own.
        model: source of the inpainter.
        device: where the models run; None is the device of the image.
        prob: probability of an edit.

    Raises:
        ValueError: an option out of range, or a key that the preset writes.

    Source: Nazir, Aqeel and Setti 2025.

    >>> import torch
    >>> image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    >>> add = diffaug(modality="ultrasound", finding="benign mass", num_inference_steps=1, max_tries=1, prob=1.0)
    >>> sample = add.set_random_state(0)({"image": image, "label": torch.zeros(1, 64, 64)})
    >>> sample["image_diffaug"]["tries"], bool(sample["label"].any()) == sample["image_diffaug"]["accepted"]
    (1, True)
    """
    check_keys(image_key, label_key)
    decides = any(each is not None for each in (validator, dynamic, novelty, screen)) or accepts_real_lesions(modality)
    if not decides:
        advice = "it undoes no edit here; validator='tiny' lets it, and a validator of your own is better"
        warnings.warn(f"{strictness_of(modality)}; {advice}", stacklevel=3)
    return Compose(
        [
            PlaceMaskd(image_key, label_key=label_key, plane=plane) if place is None else place,
            TextPromptd("prompt", modality=modality, finding=finding, anatomy=anatomy),
            LatentValidated(
                image_key,
                label_key=label_key,
                label_value=label_value,
                model="tiny" if validator is None else validator,
                inpaint=DiffusionLocalInpaintd(
                    image_key,
                    label_key=label_key,
                    label_value=label_value,
                    num_inference_steps=num_inference_steps,
                    window=window,
                    plane=plane,
                    model=model,
                    device=device,
                ),
                on_reject="retry" if decides else "flag",
                max_tries=max_tries,
                dynamic=dynamic,
                novelty=novelty,
                screen=screen,
                window=window,
                plane=plane,
                device=device,
                prob=prob,
            ),
        ]
    )
