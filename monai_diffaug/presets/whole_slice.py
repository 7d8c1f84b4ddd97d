"""Preset that makes whole slices again: EMIT-Diff."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from monai.transforms.compose import Compose
from monai.transforms.utility.dictionary import DeleteItemsd

from monai_diffaug.edit.options import ControlNet, InpaintOptions, Region, SoftEdge
from monai_diffaug.edit.signature import named_options
from monai_diffaug.presets.preset_keys import Finding, WholeImaged, check_keys
from monai_diffaug.transforms.edge_map import EdgeMapd
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.text_prompt import TextPromptd

__all__ = ["emit_diff"]


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
    check_keys(image_key, label_key)
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
