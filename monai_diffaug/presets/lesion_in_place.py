"""Presets that repaint a lesion where it is: MILA-TMGDiff and MedSoft-Diffusion."""

from __future__ import annotations

from typing import Any

from monai.transforms.compose import Compose

from monai_diffaug.edit.options import InpaintOptions, Noise, SemanticController, SoftEdge
from monai_diffaug.edit.signature import named_options
from monai_diffaug.presets.preset_keys import Finding, check_keys
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMaskd
from monai_diffaug.transforms.text_prompt import TextPromptd

__all__ = ["medsoft_diffusion", "mila_tmgdiff"]


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
    check_keys(image_key, label_key)
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
    check_keys(image_key, label_key)
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
