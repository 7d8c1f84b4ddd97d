"""Time and quality of settings that change the result (fewer steps, other schedulers, ...), on lesions of a datalist."""

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
from monai_diffaug.studies.masked_images import masked
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.time_and_memory import stopwatch
from monai_diffaug.studies.speed.timed_edits import GREY, Amount
from monai_diffaug.studies.study_images import StudyData, StudyInputError
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["Lever", "Picture", "levers", "measure_quality", "pictures"]

logger = logging.getLogger(__name__)

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
    """A setting: options of ``DiffusionLocalInpaint``, and a model; without ``trained`` weights it has a speed, but no quality."""

    name: str
    options: Mapping[str, Any]
    model: Inpainter
    trained: bool = True


def pictures(data: StudyData, count: int) -> list[Picture]:
    """Validation images of one grey data set, evenly spread, each with the mask and the name of its lesion.

    Raises:
        StudyInputError: the data have no lesion of 200 pixels, or several data sets.
    """
    lesions = [masked(image, mask, finding) for image in data.require_one().images() for finding, mask in image.findings]
    lesions = [lesion for lesion in lesions if lesion.mask.sum() >= MIN_AREA_PX]
    if not lesions:
        raise StudyInputError(f"the quality of edits needs lesions of {MIN_AREA_PX} pixels, and {data.file} has none ({data.title})")
    indices = np.linspace(0, len(lesions) - 1, min(count, len(lesions))).round().astype(int)
    return [Picture(lesions[i].image[:1].float(), lesions[i].mask, f"{lesions[i].prompt}, hypoechoic") for i in indices]


def levers(model: Inpainter, reference_steps: int) -> Iterator[Lever]:
    """The reference, the default, then one change of the default at a time."""
    from diffusers import DPMSolverMultistepScheduler, LCMScheduler, UniPCMultistepScheduler

    yield Lever(f"DDIM, {reference_steps} steps", {"num_inference_steps": reference_steps}, model)
    yield Lever(f"DDIM, {DEFAULT_STEPS} steps (default)", {}, model)
    solvers = (("DPM-Solver++ 2M", DPMSolverMultistepScheduler), ("UniPC", UniPCMultistepScheduler))
    for name, solver in (("DDIM", model), *((name, models.with_scheduler(model, scheduler)) for name, scheduler in solvers)):
        for steps in (8, 4):
            yield Lever(f"{name}, {steps} steps", {"num_inference_steps": steps}, solver)
    yield Lever("LCM, 4 steps (without distillation)", {"num_inference_steps": 4}, models.with_scheduler(model, LCMScheduler))
    yield Lever("no guidance", {"guidance_scale": 1.0}, model)
    yield Lever("guidance in the middle half of the steps", {"options": InpaintOptions(guidance_interval=(0.25, 0.75))}, model)
    yield Lever("strength 0.6", {"strength": 0.6}, model)
    yield Lever("whole slice instead of the region of interest", {"options": InpaintOptions(region=Region(whole_slice=True))}, model)
    yield Lever("bfloat16", {}, models.in_precision(model, torch.bfloat16))
    yield Lever("AutoencoderTiny (TAESD's width, random weights)", {}, models.with_tiny_vae(model), trained=False)


def measure_quality(data: StudyData, device: torch.device, amount: Amount) -> list[dict[str, Any]]:
    """A row per setting: time of an edit, gain over the default, similarity to the reference and share of accepted edits.

    The similarity is the mean SSIM inside the mask to the edit from the same noise with the reference's steps.
    """
    images = pictures(data, amount.images)
    validate = LatentValidate(window=GREY)
    reference: list[Grey] = []
    rows: list[dict[str, Any]] = []
    for lever in levers(models.embedded(device), amount.reference_steps):
        logger.info("quality: %s", lever.name)
        edits, seconds = _edits(lever, images, device)
        reference = reference or edits
        quality = _quality(reference, edits, images, validate) if lever.trained else dict.fromkeys(MEASURES)
        rows.append({"lever": lever.name, "images": len(images), "seconds": seconds, **quality})
    return [{**row, "faster_than_default": rows[1]["seconds"] / row["seconds"]} for row in rows]


def _quality(reference: list[Grey], edits: list[Grey], images: list[Picture], validate: LatentValidate) -> dict[str, float]:
    """Means over the images."""
    values = []
    for i, (expected, edit, (image, mask, _)) in enumerate(zip(reference, edits, images, strict=True)):
        verdict = validate(torch.from_numpy(edit), mask, image, seed=i)
        values.append((local_ssim(expected, edit, mask.numpy()), verdict.accepted, verdict.score))
    return dict(zip(MEASURES, np.mean(values, axis=0).tolist(), strict=True))


def _edits(lever: Lever, images: list[Picture], device: torch.device) -> tuple[list[Grey], float]:
    """The edited images, and the median time of an edit."""
    transform = DiffusionLocalInpaint(lever.model, window=GREY, **{"num_inference_steps": DEFAULT_STEPS, **lever.options})
    edits: list[Grey] = []

    def edit(seed: int, picture: Picture) -> None:
        edits.append(torch.as_tensor(transform.apply(picture.image, picture.mask, picture.prompt, seed=seed).image).cpu().numpy())

    edit(0, images[0])
    edits.clear()
    seconds = [stopwatch(partial(edit, i, picture), device) for i, picture in enumerate(images)]
    return edits, float(np.median(seconds))
