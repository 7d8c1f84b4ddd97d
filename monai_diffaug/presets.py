"""The four published systems, each as one function that returns a ``Compose`` to put after the loading transforms.

Each writes the items "mask" and "prompt" and the record of the edit; image and label need other names (else ValueError).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform
from monai.transforms.utility.dictionary import DeleteItemsd
from monai.utils.type_conversion import convert_to_dst_type

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.edit.options import ControlNet, InpaintOptions, Noise, Region, SemanticController, SoftEdge
from monai_diffaug.edit.signature import Described, named_options
from monai_diffaug.edit.validation_options import Dynamic
from monai_diffaug.transforms.edge_map import EdgeMapd
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.lesion_novelty import LesionNovelty
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMaskd
from monai_diffaug.transforms.place_mask import PlaceMaskd
from monai_diffaug.transforms.text_prompt import TextPromptd

__all__ = ["diffaug", "emit_diff", "medsoft_diffusion", "mila_tmgdiff"]

Finding = str | Sequence[str] | None
WRITTEN_KEYS = ("mask", "prompt", "edges")  # written by the presets in addition to image, label and record


@named_options
def mila_tmgdiff(
    image_key: str = "image",
    label_key: str = "label",
    *,
    modality: str,
    finding: Finding = None,
    anatomy: Finding = None,
    label_value: int = 1,
    noise_scale: float = 0.5,
    noise_source: str = "inverted",
    num_inference_steps: int = 12,
    min_iou: float = 0.5,
    window: tuple[float, float] | None = None,
    plane: str = "axial",
    model: Any = "tiny",
    medsam: Any = "tiny",
    device: str | None = None,
    prob: float = 0.5,
) -> Compose:
    """MILA-TMGDiff: MedSAM outlines the labelled lesion, a prompt describes it, controlled local noise repaints it.

    The label is not changed: the lesion stays at its place, and pixels of MedSAM's outline beyond the label are not lesion.

    Args:
        image_key, label_key: image (C, H, W[, D]) and its label (1, H, W[, D]), the source of MedSAM's boxes.
        modality, finding, anatomy: words of the prompt, see ``TextPromptd``. Set ``anatomy`` whenever ``finding`` is not in the built-in
            vocabulary; otherwise a random anatomy of the modality is chosen.
        label_value: class id of the lesion.
        noise_scale, noise_source: scale and source of the ``Noise``. With "inverted" noise the scale g is the distance to the original,
            with "random" noise the distance to the result of g = 0.
        num_inference_steps: steps of the sampler.
        min_iou: least overlap that MedSAM predicts for its outline, else the image stays as it is. The embedded model needs 0.2 to 0.3 for
            small or faint lesions.
        window: intensity range that the models see, e.g. (-160, 240) HU. None takes 0 to 255 for uint8 images, else the 0.5 and 99.5
            percentiles (MedSAM: the range of each slice).
        plane: anatomical plane of the slices of a 3-D image, "axial", "coronal" or "sagittal".
        model, medsam: sources of the inpainter and of MedSAM.
        device: where the models run; None is the device of the image.
        prob: probability of an edit.

    Raises:
        ValueError: an option out of range, or a key that the preset writes.

    Source: Cao et al., Medical Physics 2026.

    >>> import torch
    >>> image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> label = torch.zeros(1, 64, 64)
    >>> label[:, 20:40, 20:40] = 1
    >>> edit = mila_tmgdiff(modality="ultrasound", finding="benign mass", noise_scale=0.8, num_inference_steps=2, min_iou=0.0, prob=1.0)
    >>> sample = edit({"image": image, "label": label})
    >>> sample["image_diffaug"]["applied"], bool((sample["label"] == label).all())
    (True, True)
    """
    _check_keys(image_key, label_key)
    return Compose(
        [
            MedSAMMaskd(
                image_key,
                label_key=label_key,
                label_value=label_value,
                min_iou=min_iou,
                window=window,
                plane=plane,
                model=medsam,
                device=device,
            ),
            TextPromptd("prompt", modality=modality, finding=finding, anatomy=anatomy),
            DiffusionLocalInpaintd(
                image_key,
                guidance_scale=1.0,
                num_inference_steps=num_inference_steps,
                window=window,
                plane=plane,
                options=InpaintOptions(noise=Noise(source=noise_source, scale=noise_scale)),
                model=model,
                device=device,
                prob=prob,
            ),
        ]
    )


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
    validator: Any = "tiny",
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
        validator: source of the validator (any segmenter can judge), or a ``LatentValidate`` with other thresholds.
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
    _check_keys(image_key, label_key)
    return Compose(
        [
            PlaceMaskd(image_key, label_key=label_key, plane=plane) if place is None else place,
            TextPromptd("prompt", modality=modality, finding=finding, anatomy=anatomy),
            LatentValidated(
                image_key,
                label_key=label_key,
                label_value=label_value,
                model=validator,
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
                on_reject="retry",
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


@named_options
def emit_diff(
    image_key: str = "image",
    label_key: str = "label",
    *,
    modality: str,
    finding: Finding = None,
    anatomy: Finding = None,
    strength: float = 1.0,
    num_inference_steps: int = 20,
    guidance_scale: float = 9.0,
    control: ControlNet | None = None,
    region: Region | None = None,
    window: tuple[float, float] | None = None,
    plane: str = "axial",
    model: Any = "tiny",
    device: str | None = None,
    prob: float = 0.5,
) -> Compose:
    """EMIT-Diff: make the whole slice again from its edges and the label's outline, so that the label stays valid.

    Args:
        image_key, label_key: image and label; the label is not changed.
        modality, finding, anatomy: words of the prompt, see ``mila_tmgdiff``.
        strength: share of the noise schedule that is run, in (0, 1]; 1 starts from noise, less keeps more of the image than its edges.
        num_inference_steps, guidance_scale: the authors' settings are 20 and 9.
        control: source and scale of the ``ControlNet`` (the authors' scale is 1); None is the embedded one. Its key is set here.
        region: None resamples the slice to the model's size; ``Region(whole_slice=True)`` makes it at its own resolution, where a model
            that was trained on small crops, like the embedded one, is sharper (and slower by the ratio of the areas).
        window: intensity range that the models see, see ``mila_tmgdiff``.
        plane: anatomical plane of the slices of a 3-D image.
        model: source of the inpainter.
        device: where the models run; None is the device of the image.
        prob: probability of an edit.

    Raises:
        ValueError: an option out of range, or a key that the preset writes.

    Source: Zhang et al., IEEE Transactions on Medical Imaging 2024.

    >>> import torch
    >>> image, label = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 64, 64)
    >>> again = emit_diff(modality="ultrasound", finding="benign mass", num_inference_steps=1, prob=1.0)
    >>> sample = again.set_random_state(0)({"image": image, "label": label})
    >>> bool((sample["image"] != image).float().mean() > 0.9), sample["label"] is label
    (True, True)
    """
    _check_keys(image_key, label_key)
    edges = replace(ControlNet() if control is None else control, key="edges")
    return Compose(
        [
            EdgeMapd(image_key, mask_key=label_key, output_key="edges", window=window, plane=plane),
            WholeImaged(label_key),
            TextPromptd("prompt", modality=modality, finding=finding, anatomy=anatomy),
            DiffusionLocalInpaintd(
                image_key,
                strength=strength,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                window=window,
                plane=plane,
                options=InpaintOptions(
                    control=edges,
                    region=Region() if region is None else region,
                    soft_edge=SoftEdge(width_px_at_512=0.0),
                ),
                model=model,
                device=device,
                prob=prob,
            ),
            DeleteItemsd("edges"),
        ]
    )


@named_options
def medsoft_diffusion(
    image_key: str = "image",
    label_key: str = "label",
    *,
    modality: str,
    finding: Finding = None,
    anatomy: Finding = None,
    label_value: int = 1,
    soft_edge: SoftEdge | None = None,
    num_inference_steps: int = 12,
    min_iou: float = 0.5,
    window: tuple[float, float] | None = None,
    plane: str = "axial",
    model: Any = "tiny",
    control: SemanticController | None = None,
    medsam: Any = "tiny",
    device: str | None = None,
    prob: float = 0.5,
) -> Compose:
    """MedSoft-Diffusion: features predicted from the surroundings steer the repainting; the mask is soft in sampler and composite.

    Args:
        image_key, label_key: image and label.
        modality, finding, anatomy: words of the prompt, see ``mila_tmgdiff``.
        label_value: class id of the lesion.
        soft_edge: width and mode of the ``SoftEdge``; None is its default.
        num_inference_steps: steps of the sampler.
        min_iou: least overlap that MedSAM predicts for its outline, see ``mila_tmgdiff``.
        window: intensity range that the models see, see ``mila_tmgdiff``.
        plane: anatomical plane of the slices of a 3-D image.
        model, medsam: sources of the inpainter and of MedSAM.
        control: source of the ``SemanticController``; None is the embedded one.
        device: where the models run; None is the device of the image.
        prob: probability of an edit.

    Raises:
        ValueError: an option out of range, or a key that the preset writes.

    Source: MedSoft-Diffusion, MICCAI 2025.

    >>> import torch
    >>> image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> label = torch.zeros(1, 64, 64)
    >>> label[:, 20:40, 20:40] = 1
    >>> soft = medsoft_diffusion(modality="MRI", finding="glioma", soft_edge=SoftEdge(width_mm=2), num_inference_steps=1, min_iou=0, prob=1)
    >>> soft({"image": image, "label": label})["image_diffaug"]["applied"]
    True
    """
    _check_keys(image_key, label_key)
    return Compose(
        [
            MedSAMMaskd(
                image_key,
                label_key=label_key,
                label_value=label_value,
                min_iou=min_iou,
                window=window,
                plane=plane,
                model=medsam,
                device=device,
            ),
            TextPromptd("prompt", modality=modality, finding=finding, anatomy=anatomy),
            DiffusionLocalInpaintd(
                image_key,
                label_key=label_key,
                label_value=label_value,
                num_inference_steps=num_inference_steps,
                window=window,
                plane=plane,
                options=InpaintOptions(
                    control=SemanticController() if control is None else control,
                    soft_edge=SoftEdge() if soft_edge is None else soft_edge,
                ),
                model=model,
                device=device,
                prob=prob,
            ),
        ]
    )


class WholeImaged(MapTransform, Described):
    """Write a mask of ones on the grid of a label: the whole image is repainted."""

    def __init__(self, keys: KeysCollection, mask_key: str = "mask") -> None:
        MapTransform.__init__(self, keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            ones = torch.ones(tuple(d[key].shape))
            d[self.mask_key] = convert_to_dst_type(ones, d[key], dtype=torch.uint8)[0]
        return d


def _check_keys(*keys: str | None) -> None:
    """Raise ValueError if an item of the user has a name that a preset writes: the item would be lost."""
    for key in keys:
        if key in WRITTEN_KEYS:
            raise ValueError(
                f"the preset writes {key!r} itself, and your item of that name would be lost; rename it before, e.g. with "
                f"CopyItemsd({key!r}, names='label')"
            )
