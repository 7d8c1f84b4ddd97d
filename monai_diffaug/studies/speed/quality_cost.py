"""What each lever that is not exact costs in quality, beside what it gains, on real ultrasound images held out from training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, Region
from monai_diffaug.files.fidelity import local_ssim
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.speed_settings import GREY, Amount
from monai_diffaug.studies.speed.timing import stopwatch
from monai_diffaug.training.embedded.datasets import load_samples
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["Lever", "Picture", "levers", "measure_quality", "pictures"]

logger = logging.getLogger(__name__)

SOURCE = "breast_ultrasound"
MIN_AREA_PX = 200
DEFAULT_STEPS = 12
MEASURES = ("similarity", "accepted", "dice")

Grey = np.ndarray[Any, Any]
"""An edited image (1, H, W)."""


class Picture(NamedTuple):
    """A real image with a lesion to repaint: image (1, H, W) float32 grey values, mask (1, H, W) uint8."""

    image: Tensor
    mask: Tensor
    prompt: str


class Lever(NamedTuple):
    """A setting and the options of ``DiffusionLocalInpaint`` that it changes, with the model that it needs.

    Without ``trained`` weights only its time is told: the pictures mean nothing.
    """

    name: str
    options: Mapping[str, Any]
    model: Inpainter
    trained: bool = True


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
    yield Lever("guidance in the middle half of the steps", {"options": InpaintOptions(guidance_interval=(0.25, 0.75))}, model)
    yield Lever("strength 0.6", {"strength": 0.6}, model)
    yield Lever("whole slice instead of the region of interest", {"options": InpaintOptions(region=Region(whole_slice=True))}, model)
    yield Lever("bfloat16", {}, models.in_precision(model, torch.bfloat16))
    yield Lever("AutoencoderTiny (TAESD's width, random weights)", {}, models.with_tiny_vae(model), trained=False)


def measure_quality(device: torch.device, amount: Amount) -> list[dict[str, Any]]:
    """A row for each lever: time of an edit, gain over the default, similarity to the reference and share of accepted edits.

    The similarity is the mean of SSIM within the mask between the edit and the edit of the same noise with the reference's steps.
    """
    model = models.embedded(device)
    shown = pictures(amount.images)
    judge = LatentValidate(window=GREY)
    reference: list[Grey] = []
    rows: list[dict[str, Any]] = []
    for lever in levers(model, amount.reference_steps):
        logger.info("quality: %s", lever.name)
        edits, seconds = _edits(lever, shown, device)
        reference = reference or edits
        row = {"lever": lever.name, "images": len(shown), "seconds": seconds}
        rows.append({**row, **(_judged(reference, edits, shown, judge) if lever.trained else dict.fromkeys(MEASURES))})
    default = rows[1]["seconds"]
    return [{**row, "faster_than_default": default / row["seconds"]} for row in rows]


def _judged(reference: list[Grey], edits: list[Grey], shown: list[Picture], judge: LatentValidate) -> dict[str, float]:
    """Means over the images."""
    pairs = zip(reference, edits, shown, strict=True)
    similar = [local_ssim(expected, edited, picture.mask.numpy()) for expected, edited, picture in pairs]
    verdicts = [
        judge(torch.from_numpy(edited), picture.mask, picture.image, seed=i)
        for i, (edited, picture) in enumerate(zip(edits, shown, strict=True))
    ]
    accepted, dice = [verdict.accepted for verdict in verdicts], [verdict.score for verdict in verdicts]
    return dict(zip(MEASURES, (float(np.mean(values)) for values in (similar, accepted, dice)), strict=True))


def _edits(lever: Lever, shown: list[Picture], device: torch.device) -> tuple[list[Grey], float]:
    """The edited images, and the median time of one."""
    transform = DiffusionLocalInpaint(lever.model, window=GREY, **{"num_inference_steps": DEFAULT_STEPS, **lever.options})
    edits: list[Grey] = []

    def edit(seed: int, picture: Picture) -> None:
        edits.append(torch.as_tensor(transform.apply(picture.image, picture.mask, picture.prompt, seed=seed).image).cpu().numpy())

    edit(0, shown[0])
    edits.clear()
    seconds = [stopwatch(partial(edit, i, picture), device) for i, picture in enumerate(shown)]
    return edits, float(np.median(seconds))
