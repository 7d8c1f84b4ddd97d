"""Lesions painted into free places: the generated sample that studies of distributions and of memorisation judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from monai_diffaug.studies.regions import Region, free_places
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["painted_lesions"]

PROMPTS = (("benign mass", "ultrasound of breast, benign mass"), ("malignant mass", "ultrasound of breast, malignant mass"))


def painted_lesions(
    n: int, *, model: Any = "tiny", seed: int = 0, num_inference_steps: int = 12, guidance_scale: float = 3.0
) -> tuple[list[Region], list[Region]]:
    """``n`` places in normal validation ultrasound of the breast, with a benign or a malignant mass in turn painted into them.

    Args:
        n: how many.
        model: source of the inpainter.
        seed: of places and noise.
        num_inference_steps, guidance_scale: of the sampler.

    Returns:
        The regions with the painted images, and the same places as they were.
    """
    places = free_places(n, seed=seed)
    words = [PROMPTS[i % len(PROMPTS)] for i in range(n)]
    inpaint = DiffusionLocalInpaint(model, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, device="cpu")
    edits = inpaint.apply_batch(
        [place.image for place in places], [place.mask for place in places], [text for _, text in words], seeds=[seed + i for i in range(n)]
    )
    painted = [
        replace(place, image=torch.as_tensor(edit.image), finding=finding)
        for place, edit, (finding, _) in zip(places, edits, words, strict=True)
    ]
    return painted, places
