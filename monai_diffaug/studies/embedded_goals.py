"""The embedded models against their goals, on the validation images.

Prints each goal next to the measured figure; ``--out FILE`` writes them as JSON (``weights/tiny/figures.json`` is such a file;
``monai-diffaug info`` shows it).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from monai_diffaug.masks.shapes import borrow_shape, place
from monai_diffaug.masks.soft_edge import soft_mask
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec, shared_model
from monai_diffaug.prompts import NORMAL, vocabulary_of
from monai_diffaug.studies.masked_images import MIN_AREA_PX, MaskedImage, masked, tissue_of
from monai_diffaug.studies.medsam_boxes import box_dice
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData, StudyInputError
from monai_diffaug.studies.validator_dice import false_alarm_rate, lesion_dice
from monai_diffaug.training.crops import crop_squares
from monai_diffaug.transforms.latent_validate import LatentValidate

__all__ = ["measure", "normal_data", "painted_into_normal", "table", "vae_psnr"]

SIDE_SHARE = 0.75  # side of the autoencoder's crops, as a share of the image's longer side
ACCEPTED_DICE = 0.7


@torch.no_grad()
def vae_psnr(data: StudyData, images_per_dataset: int = 8) -> dict[str, float]:
    """Mean PSNR in dB (peak = the range of 2) of the embedded VAE per modality, on centre crops of the first images of each data set."""
    model = shared_model(ModelSpec("inpainter"), "cpu", load_inpainter)
    values: dict[str, list[float]] = defaultdict(list)
    for name in data.datasets:
        for one in data.only(name).images()[:images_per_dataset]:
            height, width = one.image.shape[-2:]
            centre = torch.tensor([[(height - 1) / 2, (width - 1) / 2]])
            side = torch.tensor([SIDE_SHARE * max(height, width)])
            crop = crop_squares(one.image.expand(3, -1, -1)[None].float() / 127.5 - 1, centre, side, model.size_px)
            error = float((model.decode(model.encode(crop)).clamp(-1, 1) - crop).square().mean())
            values[one.modality].append(10 * np.log10(4 / error))
    return {modality: float(np.mean(numbers)) for modality, numbers in values.items()}


def normal_data(data: StudyData) -> StudyData | None:
    """The first data set whose validation images are with and without lesions; None where there is none."""
    for name in data.datasets:
        images = data.only(name).images()
        if any(image.is_normal for image in images) and any(image.findings for image in images):
            return data.only(name)
    return None


def _outlines_on_normal_images(data: StudyData, per_image: int, seed: int = 0) -> list[MaskedImage]:
    """Normal validation images with outlines of real validation lesions placed on their tissue."""
    rng = np.random.RandomState(seed)
    images = data.images()
    outlines = [mask for image in images for _, mask in image.findings if mask.sum() > MIN_AREA_PX]
    chosen: list[MaskedImage] = []
    for image in (one for one in images if one.is_normal):
        masks = []
        for _ in range(20 * per_image):
            outline = outlines[rng.randint(len(outlines))]
            mask = place(rng, borrow_shape(rng, outline, rng.uniform(0.6, 1.0)), tissue_of(image))
            if mask is not None:
                masks.append(mask)
            if len(masks) == per_image:
                break
        chosen += [masked(image, mask, NORMAL) for mask in masks]
    return chosen


def painted_into_normal(data: StudyData, per_image: int = 2, steps: int = 12, guidance_scale: float = 3.0) -> dict[str, Any]:
    """Share of edits of normal images in which the validator finds a lesion at Dice >= 0.7, and voxels changed outside.

    Args:
        data: one data set with lesions and normal images.
        per_image: edits per normal image.
        steps, guidance_scale: of the sampler.
    """
    places, words = _outlines_on_normal_images(data, per_image), data.finding_words
    inpaint, validate = Painter(num_inference_steps=steps, guidance_scale=guidance_scale).transform(), LatentValidate()
    vocabulary = vocabulary_of(places[0].modality)
    darkest = vocabulary.attributes[vocabulary.grey_axis][0]
    scores: dict[str, list[float]] = {"lesion": [], "normal": []}
    outside = 0
    for index, one in enumerate(places):
        lesion_prompt = f"{one.prompt_for(words[index % len(words)])}, {darkest}"
        for kind, prompt in (("lesion", lesion_prompt), ("normal", one.prompt)):
            edited = torch.as_tensor(inpaint.apply(one.image, one.mask, prompt, seed=index).image)
            support = soft_mask(one.mask[0], 12.0) > 0  # wider than any soft edge of the transform at this image size
            outside += int(((edited != one.image).any(0) & ~support).sum())
            scores[kind].append(validate(edited, one.mask, one.image, seed=index).score)
    return {
        "dataset": data.datasets[0],
        "modality": vocabulary.modality,
        "n": float(len(places)),
        "found_lesion_prompt": float(np.mean([s >= ACCEPTED_DICE for s in scores["lesion"]])),
        "found_normal_prompt": float(np.mean([s >= ACCEPTED_DICE for s in scores["normal"]])),
        "mean_dice_lesion_prompt": float(np.mean(scores["lesion"])),
        "mean_dice_normal_prompt": float(np.mean(scores["normal"])),
        "voxels_changed_outside": float(outside),
    }


def measure(data: StudyData) -> dict[str, Any]:
    """All figures of the embedded models as one dictionary.

    Raises:
        StudyInputError: no data set has lesions and normal images.
    """
    mixed = normal_data(data)
    if mixed is None:
        raise StudyInputError(f'this study needs a data set with lesions and normal images in "validation", and {data.file} has none')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "vae_psnr_db": vae_psnr(data),
            "medsam_box_dice": box_dice(data),
            "validator_lesion_dice": lesion_dice(data),
            "validator_false_alarm_rate": false_alarm_rate(mixed),
            "painted_into_normal": painted_into_normal(mixed),
        }


def table(figures: dict[str, Any]) -> str:
    """Goal and measured figure, one line each."""
    psnr, box, lesion = figures["vae_psnr_db"], figures["medsam_box_dice"], figures["validator_lesion_dice"]
    painted = figures["painted_into_normal"]
    key, normal = painted["dataset"], f"normal {painted['modality']}"
    name = key.replace("_", " ") or "this data set"
    rows = [(f"VAE PSNR, {modality} (dB)", ">= 30", f"{value:.1f}") for modality, value in psnr.items()]
    rows += [
        (f"MedSAM box Dice, {name}", ">= 0.85", f"{box.get(key, np.nan):.3f}"),
        ("MedSAM box Dice, mean of data sets", ">= 0.80", f"{np.mean(list(box.values())):.3f}"),
        (f"validator Dice on real lesions, {name}", ">= 0.75", f"{lesion.get(key, np.nan):.3f}"),
        ("validator Dice on real lesions, mean of data sets", ">= 0.75", f"{np.mean(list(lesion.values())):.3f}"),
        (f"found in {normal}, lesion prompt", ">= 0.70", f"{painted['found_lesion_prompt']:.2f} (n={painted['n']:.0f})"),
        (f"found in {normal}, normal prompt", "<= 0.15", f"{painted['found_normal_prompt']:.2f}"),
        ("voxels changed outside the soft mask", "0", f"{painted['voxels_changed_outside']:.0f}"),
    ]
    return "\n".join(f"{row:<52}{goal:>10}{value:>16}" for row, goal, value in rows)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    figures = measure(data)
    return table(figures), figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__, model=None, repaints=False, seed=False)
    return run_study(parser, _study, arguments, needs="labelled lesions and normal images", with_settings=False)
