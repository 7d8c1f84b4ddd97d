"""Measure the embedded models on the validation groups: ``python -m monai_diffaug.studies.embedded_goals``.

Prints each goal beside the measured figure and writes them with ``--out FILE`` as JSON (``weights/tiny/figures.json`` is
such a file; ``monai-diffaug info`` shows it).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.masks.shapes import borrow_shape, place
from monai_diffaug.masks.soft_edge import soft_mask
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec, shared_model
from monai_diffaug.studies.medsam_boxes import box_dice
from monai_diffaug.studies.validator_dice import false_alarm_rate, lesion_dice
from monai_diffaug.training.crops import crop_squares
from monai_diffaug.training.embedded.datasets import SOURCES, load_samples
from monai_diffaug.training.embedded.latent_bank import MaskedCropSampler
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["painted_into_normal", "vae_psnr"]

LESION_PROMPTS = ("ultrasound of breast, benign mass, hypoechoic", "ultrasound of breast, malignant mass, hypoechoic")
NORMAL_PROMPT = "ultrasound of breast, normal tissue"


@torch.no_grad()
def vae_psnr(images_per_source: int = 8) -> dict[str, float]:
    """Mean PSNR in dB (peak = the range of 2) of the embedded VAE per modality, on 128 px centre crops of 192 px."""
    model = shared_model(ModelSpec("inpainter"), "cpu", load_inpainter)
    values: dict[str, list[float]] = defaultdict(list)
    for source in SOURCES:
        for sample in load_samples(source.name, "validation")[:images_per_source]:
            image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 127.5 - 1
            crop = crop_squares(image, torch.tensor([[127.5, 127.5]]), torch.tensor([192.0]), model.size_px)
            error = float((model.decode(model.encode(crop)).clamp(-1, 1) - crop).square().mean())
            values[source.modality].append(10 * np.log10(4 / error))
    return {modality: float(np.mean(numbers)) for modality, numbers in values.items()}


def _normal_samples_with_masks(per_image: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Normal validation ultrasound images (1, 256, 256) with outlines of real validation lesions placed on tissue."""
    sampler = MaskedCropSampler("validation", seed, ("breast_ultrasound",))
    pairs = []
    for sample in load_samples("breast_ultrasound", "validation"):
        if sample.label.any():
            continue
        found = 0
        for _ in range(20 * per_image):
            outline = sampler.outlines[sampler.rng.randint(len(sampler.outlines))]
            mask = place(sampler.rng, borrow_shape(sampler.rng, outline, sampler.rng.uniform(0.6, 1.0)), sampler.tissue(sample))
            if mask is not None:
                pairs.append((torch.from_numpy(sample.image[None, ..., 0].copy()), torch.from_numpy(mask[None].astype(np.uint8))))
                found += 1
            if found == per_image:
                break
    return pairs


def painted_into_normal(per_image: int = 2, steps: int = 12, guidance_scale: float = 3.0) -> dict[str, float]:
    """Share of edits of normal breast ultrasound that the validator finds at Dice >= 0.7, and voxels changed outside."""
    inpaint = DiffusionLocalInpaint(num_inference_steps=steps, guidance_scale=guidance_scale)
    validate = LatentValidate()
    scores: dict[str, list[float]] = {"lesion": [], "normal": []}
    outside = 0
    for index, (image, mask) in enumerate(_normal_samples_with_masks(per_image)):
        for kind, prompt in (("lesion", LESION_PROMPTS[index % 2]), ("normal", NORMAL_PROMPT)):
            edited = torch.as_tensor(inpaint.apply(image, mask, prompt, seed=index).image)
            support = soft_mask(mask[0], 12.0) > 0  # wider than any soft edge of the transform at this image size
            outside += int(((edited != image)[0] & ~support).sum())
            scores[kind].append(validate(edited, mask, image, seed=index).score)
    count = len(scores["lesion"])
    return {
        "n": float(count),
        "found_lesion_prompt": float(np.mean([s >= 0.7 for s in scores["lesion"]])),
        "found_normal_prompt": float(np.mean([s >= 0.7 for s in scores["normal"]])),
        "mean_dice_lesion_prompt": float(np.mean(scores["lesion"])),
        "mean_dice_normal_prompt": float(np.mean(scores["normal"])),
        "voxels_changed_outside": float(outside),
    }


def measure() -> dict[str, Any]:
    """All figures of the embedded models as one dictionary."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "vae_psnr_db": vae_psnr(),
            "medsam_box_dice": box_dice(),
            "validator_lesion_dice": lesion_dice(),
            "validator_false_alarm_rate": false_alarm_rate(),
            "painted_into_normal_ultrasound": painted_into_normal(),
        }


def table(figures: dict[str, Any]) -> str:
    """Goal and measured figure, a line each."""
    psnr, box, lesion = figures["vae_psnr_db"], figures["medsam_box_dice"], figures["validator_lesion_dice"]
    painted = figures["painted_into_normal_ultrasound"]
    rows = [(f"VAE PSNR, {name} (dB)", ">= 30", f"{value:.1f}") for name, value in psnr.items()]
    rows += [
        ("MedSAM box Dice, breast ultrasound", ">= 0.85", f"{box['breast_ultrasound']:.3f}"),
        ("MedSAM box Dice, mean of data sets", ">= 0.80", f"{np.mean(list(box.values())):.3f}"),
        ("validator Dice on real lesions, breast ultrasound", ">= 0.75", f"{lesion['breast_ultrasound']:.3f}"),
        ("validator Dice on real lesions, mean of data sets", ">= 0.75", f"{np.mean(list(lesion.values())):.3f}"),
        ("found in normal ultrasound, lesion prompt", ">= 0.70", f"{painted['found_lesion_prompt']:.2f} (n={painted['n']:.0f})"),
        ("found in normal ultrasound, normal prompt", "<= 0.15", f"{painted['found_normal_prompt']:.2f}"),
        ("voxels changed outside the soft mask", "0", f"{painted['voxels_changed_outside']:.0f}"),
    ]
    return "\n".join(f"{name:<52}{goal:>10}{value:>16}" for name, goal, value in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    figures = measure()
    sys.stdout.write(table(figures) + "\n")
    if args.out:
        part = args.out.with_suffix(".part")
        part.write_text(json.dumps(figures, indent=2) + "\n")
        part.replace(args.out)


if __name__ == "__main__":
    main()
