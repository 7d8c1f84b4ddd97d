"""What each lever that is not exact costs in quality, beside what it gains, on real ultrasound images held out from training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.benchmark import models
from monai_diffaug.benchmark.settings import GREY, Amount
from monai_diffaug.benchmark.timing import stopwatch
from monai_diffaug.evaluation.fidelity import local_ssim
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.training.datasets import load_samples
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["Lever", "Picture", "levers", "measure_quality", "pictures"]

logger = logging.getLogger(__name__)

SOURCE = "breast_ultrasound"
MIN_AREA_PX = 200
DEFAULT_STEPS = 12


class Picture(NamedTuple):
    """A real image with a lesion to repaint: image (1, H, W) float32 grey values, mask (1, H, W) uint8."""

    image: Tensor
    mask: Tensor
    prompt: str


class Lever(NamedTuple):
    """A setting and the options of ``DiffusionLocalInpaint`` that it changes, with the model that it needs."""

    name: str
    options: Mapping[str, Any]
    model: Inpainter


def pictures(count: int) -> list[Picture]:
    """Validation images of breast ultrasound, evenly spread, each with the mask and the name of its own lesion.

    Raises:
        FileNotFoundError: the data folder is not there.
    """
    found = []
    for sample in load_samples(SOURCE, "validation"):
        for finding, mask in sample.masks():
            if mask.sum() >= MIN_AREA_PX:
                image = torch.from_numpy(sample.image[None, ..., 0].astype(np.float32))
                found.append(Picture(image, torch.from_numpy(mask[None].astype(np.uint8)), f"ultrasound of breast, {finding}, hypoechoic"))
    chosen = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[i] for i in chosen]


def levers(model: Inpainter, reference_steps: int) -> Iterator[Lever]:
    """The reference first, the default second, then one lever at a time."""
    from diffusers import DPMSolverMultistepScheduler, LCMScheduler, UniPCMultistepScheduler

    yield Lever(f"DDIM, {reference_steps} steps", {"num_inference_steps": reference_steps}, model)
    yield Lever(f"DDIM, {DEFAULT_STEPS} steps (default)", {}, model)
    for steps in (8, 4):
        yield Lever(f"DDIM, {steps} steps", {"num_inference_steps": steps}, model)
    for name, scheduler in (("DPM-Solver++ 2M", DPMSolverMultistepScheduler), ("UniPC", UniPCMultistepScheduler)):
        other = models.with_scheduler(model, scheduler)
        for steps in (8, 4):
            yield Lever(f"{name}, {steps} steps", {"num_inference_steps": steps}, other)
    yield Lever("LCM, 4 steps (without distillation)", {"num_inference_steps": 4}, models.with_scheduler(model, LCMScheduler))
    yield Lever("no guidance", {"guidance_scale": 1.0}, model)
    yield Lever("guidance in the middle half of the steps", {"guidance_interval": (0.25, 0.75)}, model)
    yield Lever("strength 0.6", {"strength": 0.6}, model)
    yield Lever("whole slice instead of the region of interest", {"roi": False}, model)
    yield Lever("bfloat16", {}, models.in_precision(model, torch.bfloat16))


def measure_quality(device: torch.device, amount: Amount) -> list[dict[str, Any]]:
    """A row for each lever: time of an edit, gain over the default, similarity to the reference and share of accepted edits.

    The similarity is the mean of SSIM within the mask between the edit and the edit of the same noise with the reference's steps.
    """
    model = models.embedded(device)
    shown = pictures(amount.images)
    judge = LatentValidate(window=GREY)
    reference: list[np.ndarray[Any, Any]] = []
    rows: list[dict[str, Any]] = []
    for lever in levers(model, amount.reference_steps):
        logger.info("quality: %s", lever.name)
        edits, seconds = _edits(lever, shown, device)
        reference = reference or edits
        similar = [
            local_ssim(expected, edited, picture.mask.numpy()) for expected, edited, picture in zip(reference, edits, shown, strict=True)
        ]
        verdicts = [
            judge(torch.from_numpy(edited), picture.mask, picture.image, seed=i)
            for i, (edited, picture) in enumerate(zip(edits, shown, strict=True))
        ]
        rows.append(
            {
                "lever": lever.name,
                "images": len(shown),
                "seconds": seconds,
                "similarity": float(np.mean(similar)),
                "accepted": float(np.mean([verdict.accepted for verdict in verdicts])),
                "dice": float(np.mean([verdict.score for verdict in verdicts])),
            }
        )
    default = rows[1]["seconds"]
    return [{**row, "faster_than_default": default / row["seconds"]} for row in rows]


def _edits(lever: Lever, shown: list[Picture], device: torch.device) -> tuple[list[np.ndarray[Any, Any]], float]:
    """The edited images, and the median time of one."""
    transform = DiffusionLocalInpaint(lever.model, window=GREY, **{"num_inference_steps": DEFAULT_STEPS, **lever.options})
    edits: list[np.ndarray[Any, Any]] = []

    def edit(seed: int, picture: Picture) -> None:
        edits.append(torch.as_tensor(transform.apply(picture.image, picture.mask, picture.prompt, seed=seed).image).cpu().numpy())

    edit(0, shown[0])
    edits.clear()
    seconds = [stopwatch(partial(edit, i, picture), device) for i, picture in enumerate(shown)]
    return edits, float(np.median(seconds))
