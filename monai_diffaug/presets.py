"""The four published systems, each as one line: a ``Compose`` that goes behind the loading part of a pipeline.

Each writes the items "mask" and "prompt" and the record of the edit; image, label and region must have other names (else ValueError).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform
from monai.transforms.utility.dictionary import DeleteItemsd
from monai.utils.type_conversion import convert_to_dst_type

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.edit.options import ControlNet, InpaintOptions, Noise, Region, SemanticController, SoftEdge
from monai_diffaug.edit.validation_options import Dynamic, Validator
from monai_diffaug.transforms.edge_map import EdgeMapd
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.lesion_novelty import LesionNovelty
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMaskd
from monai_diffaug.transforms.place_mask import PlaceMaskd, ShapeSource
from monai_diffaug.transforms.text_prompt import TextPromptd

__all__ = ["diffaug", "emit_diff", "medsoft_diffusion", "mila_tmgdiff"]

Finding = str | Sequence[str] | None
OWN_KEYS = ("mask", "prompt", "edges")  # what the presets write beside image, label and record


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

    The label is not changed: the lesion stays where it is, and what MedSAM's outline covers beyond it is none.

    Args:
        image_key, label_key: image (C, H, W[, D]) and its label (1, H, W[, D]), where MedSAM's boxes come from.
        modality, finding, anatomy: words of the prompt, see ``TextPromptd``; name the anatomy of a finding that the vocabulary does not
            know, else it is drawn from all of the modality's.
        label_value: the lesion's class id.
        noise_scale: g in [0, 1], how far the result moves from the original.
        noise_source: "inverted" (g is the distance to the original) or "random" (to the g = 0 twin).
        num_inference_steps: steps of the sampler.
        min_iou: least overlap that MedSAM expects of its outline, else the image stays as it is; the embedded one needs 0.2 to 0.3 for what
            is small or faint.
        window: intensities that the models see, e.g. (-160, 240) HU; default 0 to 255 for uint8 images, else their 0.5 and 99.5
            percentiles (MedSAM: each slice's own range).
        plane: anatomical plane of the slices of a 3-D image, "axial", "coronal" or "sagittal".
        model, medsam: sources of the inpainter and of MedSAM.
        device: where they run; default the image's device.
        prob: probability of an edit.

    Source: Cao et al., Medical Physics 2026.
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
                options=InpaintOptions(noise=Noise(source=noise_source, scale=noise_scale)),
                num_inference_steps=num_inference_steps,
                window=window,
                plane=plane,
                model=model,
                device=device,
                prob=prob,
            ),
        ]
    )


def diffaug(
    image_key: str = "image",
    label_key: str = "label",
    *,
    modality: str,
    finding: Finding = None,
    anatomy: Finding = None,
    label_value: int = 1,
    bank: Sequence[NdarrayOrTensor | str | Path] | None = None,
    shape: str | ShapeSource = "blob",
    region_key: str | None = None,
    size_range: tuple[float, float] = (0.08, 0.35),
    scale_range: tuple[float, float] = (0.7, 1.3),
    depth_mm: float = 8.0,
    num_inference_steps: int = 12,
    max_tries: int = 3,
    min_dice: float = 0.7,
    dynamic: bool = False,
    refine_label: bool = False,
    novelty: LesionNovelty | LesionBank | str | Path | None = None,
    screen: Any = None,
    window: tuple[float, float] | None = None,
    plane: str = "axial",
    model: Any = "tiny",
    validator: Any = "tiny",
    device: str | None = None,
    prob: float = 0.5,
) -> Compose:
    """DiffAug: a lesion is painted into normal tissue and kept only when the latent validator finds it again, else painted anew.

    Args:
        image_key, label_key: image and label; the lesion is placed clear of what is labelled and painted into the label.
        modality, finding, anatomy: words of the prompt; name the anatomy of a finding that the vocabulary does not know, else it is drawn.
        label_value: the class id that is painted.
        bank: real masks (arrays or files) whose outlines are used; None draws random shapes.
        shape: which random shapes, "blob", "ellipse" or a function, see ``PlaceMaskd``.
        region_key: where a lesion may lie, e.g. an organ; None means tissue.
        size_range: longer side of a random shape, as a share of the slice's shorter side.
        scale_range: scaling of an outline of the bank.
        depth_mm: height of the region in a volume; 0 is one slice.
        num_inference_steps: steps of the sampler; 1 is DiffAug's single-step generation.
        max_tries: candidates at most; when none is accepted the sample stays as it was.
        min_dice: least Dice of what the validator finds with the mask.
        dynamic: raise that threshold with the scores seen, see ``LatentValidated``.
        refine_label: label what the validator found in place of the whole mask.
        novelty: the training lesions, so that copies of them are painted anew, see ``LatentValidated``.
        screen: "tiny" or another source of a latent screen, which gives up hopeless candidates after a quarter of their steps.
        window: intensities that the models see; default as in ``mila_tmgdiff``.
        plane: anatomical plane of the slices of a 3-D image.
        model, validator: sources of the inpainter and of the validator (any segmenter can judge).
        device: where they run; default the image's device.
        prob: probability of an edit.

    Source: Nazir, Aqeel and Setti 2025.
    """
    _check_keys(image_key, label_key, region_key)
    return Compose(
        [
            PlaceMaskd(
                image_key,
                label_key=label_key,
                bank=bank,
                shape=shape,
                region_key=region_key,
                size_range=size_range,
                scale_range=scale_range,
                depth_mm=depth_mm,
                plane=plane,
            ),
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
                min_dice=min_dice,
                dynamic=Dynamic() if dynamic else None,
                validator=Validator(refine_label=refine_label),
                novelty=novelty,
                screen=screen,
                window=window,
                plane=plane,
                device=device,
                prob=prob,
            ),
        ]
    )


def emit_diff(
    image_key: str = "image",
    label_key: str = "label",
    *,
    modality: str,
    finding: Finding = None,
    anatomy: Finding = None,
    strength: float = 1.0,
    roi: bool = True,
    num_inference_steps: int = 20,
    guidance_scale: float = 9.0,
    control_scale: float = 1.0,
    window: tuple[float, float] | None = None,
    plane: str = "axial",
    model: Any = "tiny",
    controlnet: Any = "tiny",
    device: str | None = None,
    prob: float = 0.5,
) -> Compose:
    """EMIT-Diff: the whole slice is made anew from its edges and the label's outline, so that the label stays valid.

    Args:
        image_key, label_key: image and label; the label is not changed.
        modality, finding, anatomy: words of the prompt; name the anatomy of a finding that the vocabulary does not know, else it is drawn.
        strength: share of the noise schedule that is run, in (0, 1]; 1 starts from noise, less keeps more of the image than its edges.
        roi: True resamples the slice to the model's size; False makes it at its own resolution, where a model that was trained on small
            crops, like the embedded one, is sharper (and slower by the ratio of the areas).
        num_inference_steps, guidance_scale, control_scale: the authors' settings are 20, 9 and 1.
        window: intensities that the models see; default as in ``mila_tmgdiff``.
        plane: anatomical plane of the slices of a 3-D image.
        model, controlnet: sources of the inpainter and of the ControlNet.
        device: where they run; default the image's device.
        prob: probability of an edit.

    Source: Zhang et al., IEEE Transactions on Medical Imaging 2024.
    """
    _check_keys(image_key, label_key)
    return Compose(
        [
            EdgeMapd(image_key, mask_key=label_key, output_key="edges", window=window, plane=plane),
            WholeImaged(label_key),
            TextPromptd("prompt", modality=modality, finding=finding, anatomy=anatomy),
            DiffusionLocalInpaintd(
                image_key,
                strength=strength,
                options=InpaintOptions(
                    control=ControlNet(controlnet, scale=control_scale, key="edges"),
                    region=Region(whole_slice=not roi),
                    soft_edge=SoftEdge(width_px_at_512=0.0),
                ),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                window=window,
                plane=plane,
                model=model,
                device=device,
                prob=prob,
            ),
            DeleteItemsd("edges"),
        ]
    )


def medsoft_diffusion(
    image_key: str = "image",
    label_key: str = "label",
    *,
    modality: str,
    finding: Finding = None,
    anatomy: Finding = None,
    label_value: int = 1,
    soft_width: float = 4.0,
    soft_width_mm: float | None = None,
    num_inference_steps: int = 12,
    min_iou: float = 0.5,
    window: tuple[float, float] | None = None,
    plane: str = "axial",
    model: Any = "tiny",
    semantic_controller: Any = "tiny",
    medsam: Any = "tiny",
    device: str | None = None,
    prob: float = 0.5,
) -> Compose:
    """MedSoft-Diffusion: features predicted from the surround steer the repainting, and the mask is soft in sampler and composite.

    Args:
        image_key, label_key: image and label.
        modality, finding, anatomy: words of the prompt; name the anatomy of a finding that the vocabulary does not know, else it is drawn.
        label_value: the lesion's class id.
        soft_width, soft_width_mm: width of the soft edge, see ``DiffusionLocalInpaint``.
        num_inference_steps: steps of the sampler.
        min_iou: least overlap that MedSAM expects of its outline, else the image stays as it is; the embedded one needs 0.2 to 0.3 for what
            is small or faint.
        window: intensities that the models see; default as in ``mila_tmgdiff``.
        plane: anatomical plane of the slices of a 3-D image.
        model, semantic_controller, medsam: sources of the inpainter, of the semantic controller and of MedSAM.
        device: where they run; default the image's device.
        prob: probability of an edit.

    Source: MedSoft-Diffusion, MICCAI 2025.
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
                options=InpaintOptions(
                    control=SemanticController(semantic_controller),
                    soft_edge=SoftEdge(width_px_at_512=soft_width, width_mm=soft_width_mm),
                ),
                num_inference_steps=num_inference_steps,
                window=window,
                plane=plane,
                model=model,
                device=device,
                prob=prob,
            ),
        ]
    )


class WholeImaged(MapTransform):
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
    """Raise ValueError when an item of the user's has the name of one that a preset writes: it would be lost."""
    for key in keys:
        if key in OWN_KEYS:
            raise ValueError(
                f"the preset writes {key!r} itself, and your item of that name would be lost; rename it before, e.g. with "
                f"CopyItemsd({key!r}, names='label')"
            )
