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
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.masks.boxes import box_around, connected_components, enlarged
from monai_diffaug.masks.shapes import borrow_shape, place, random_blob
from monai_diffaug.masks.soft_edge import soft_mask
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import ModelSpec, shared_model, spec_of
from monai_diffaug.models.validator import load_validator
from monai_diffaug.prompts import NORMAL, vocabulary_of
from monai_diffaug.sampling.seeding import slice_generators
from monai_diffaug.studies.masked_images import MIN_AREA_PX, MaskedImage, cut_squares, lesion_square, lesions_of, masked, tissue_of
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData, StudyImage, StudyInputError
from monai_diffaug.training.crops import blurred
from monai_diffaug.transforms.latent_validate import LatentValidate

__all__ = ["box_dice", "false_alarm_rate", "lesion_dice", "measure", "painted_into_normal", "table", "vae_psnr"]

SIDE_SHARE = 0.75  # side of the autoencoder's crops, as a share of the image's longer side
SPECK_PX = 25  # MedSAM drops parts below 100 px on slices of 512, which is 25 on 256
CROP_PX = 128
LEAST_LESION_PX = 20
LESION_CONTEXT, TISSUE_CONTEXT = 2.0, (1.4, 2.6)
FALSE_ALARM_SHARE = 0.02  # of the crop's area: less is a speck, not a lesion
ACCEPTED_DICE = 0.7


@torch.no_grad()
def vae_psnr(data: StudyData, images_per_dataset: int = 8) -> dict[str, float]:
    """Mean PSNR in dB (peak = the range of 2) of the embedded VAE per modality, on centre crops of the first images of each data set."""
    model = shared_model(ModelSpec("inpainter"), "cpu", load_inpainter)
    values: dict[str, list[float]] = defaultdict(list)
    for each in data.each():
        for one in each.images()[:images_per_dataset]:
            size = np.array([one.image.shape[-2:]])
            crop = cut_squares([one.image.expand(3, -1, -1) / 127.5 - 1], (size - 1) / 2, SIDE_SHARE * size.max(1), model.size_px)
            error = float((model.decode(model.encode(crop)).clamp(-1, 1) - crop).square().mean())
            values[one.modality].append(10 * np.log10(4 / error))
    return {modality: float(np.mean(numbers)) for modality, numbers in values.items()}


def box_dice(data: StudyData, *, model: Any = "tiny", jitter_px: float = 20, seed: int = 0) -> dict[str, float]:
    """Mean Dice of MedSAM's outlines by data set, each connected part of a finding prompted by its own jittered box.

    MedSAM's own protocol: each side of a part's bounding box moves outward by 0 to ``jitter_px`` pixels of a slice 1024 wide; parts below
    ``SPECK_PX`` pixels are left out.
    """
    medsam = shared_model(spec_of("medsam", model), "cpu", load_medsam)
    rng = np.random.RandomState(seed)
    scores: dict[str, list[float]] = {}
    for image in data.images():
        parts = [part for _, mask in image.findings for part in connected_components(torch.from_numpy(mask)) if part.sum() >= SPECK_PX]
        if parts:
            embedding, size = medsam.encode(image.image.expand(3, -1, -1)[None]), (parts[0].shape[0], parts[0].shape[1])
        for part in parts:
            box = enlarged(box_around(part), rng.uniform(0, jitter_px, 4), size)
            outline = medsam.decode(embedding, torch.tensor([box]), size)[0][0]
            scores.setdefault(image.dataset, []).append(2 * int((outline & part).sum()) / int(outline.sum() + part.sum()))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def lesion_dice(data: StudyData, *, model: Any = "tiny") -> dict[str, float]:
    """Mean Dice of the validator's predictions and the real masks in mask-centred crops, by data set."""
    result = {}
    for each in data.each():
        lesions = lesions_of(each.images(), LEAST_LESION_PX)
        if lesions:
            chosen = [lesions[i] for i in np.random.RandomState(0).permutation(len(lesions))]
            crops = _cut(chosen, [lesion_square(one.mask_hw, LESION_CONTEXT)[:2] for one in chosen])
            predictions, masks = _predicted(crops[:, :3] * 2 - 1, model), crops[:, 3:] > 0.5
            overlap, total = (predictions & masks).sum((1, 2, 3)), predictions.sum((1, 2, 3)) + masks.sum((1, 2, 3))
            result[each.datasets[0]] = float((2 * overlap / total).mean())
    return result


def false_alarm_rate(data: StudyData, n: int = 128, seed: int = 0, *, model: Any = "tiny") -> float:
    """Share of crops of normal tissue, turned, mirrored and softened as in training, in which the validator marks more than 2 %."""
    rng = np.random.RandomState(seed)
    images, outlines = data.images(), _outlines(data)
    rng.rand(n)  # the sampler behind the shipped figures drew here whether a crop shows a lesion
    places = [_tissue_square(rng, images, outlines) for _ in range(n)]
    angles, flips = rng.uniform(-0.35, 0.35, n), rng.rand(n) < 0.5
    crops = _cut([place for place, _ in places], [square for _, square in places], angles, flips)[:, :3]
    for i in range(n):
        rng.rand()  # likewise: whether its outline is filled with other tissue
        if rng.rand() < 0.35:
            crops[i] = blurred(crops[i : i + 1], rng.uniform(0.4, 1.3))[0]
    gamma = torch.from_numpy(np.exp(rng.uniform(-0.3, 0.3, (n, 1, 1, 1)))).float()
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (n, 1, 1, 1))).float()
    predictions = _predicted((crops.clamp(0, 1) ** gamma * gain).clamp(0, 1) * 2 - 1, model)
    return float((predictions.float().mean((1, 2, 3)) > FALSE_ALARM_SHARE).float().mean())


def _predicted(crops: Tensor, model: Any, batch_size: int = 16) -> Tensor:
    """A validator's masks (N, 1, h, w) bool of crops (N, 3, h, w) in [-1, 1]."""
    validator = shared_model(spec_of("validator", model), "cpu", load_validator)
    generators, batches = slice_generators(0, range(len(crops))), range(0, len(crops), batch_size)
    return torch.cat([validator.predict(crops[i : i + batch_size], generators[i : i + batch_size]) > 0.5 for i in batches])


def _cut(images: Sequence[MaskedImage], squares: Sequence[tuple[Any, float]], *turned: NDArray[Any]) -> Tensor:
    """(N, 4, 128, 128) in [0, 1]: three channels and the mask, in squares of given centres and sides."""
    stacked = [torch.cat([one.image.expand(3, -1, -1) / 255, one.mask]) for one in images]
    return cut_squares(stacked, np.stack([centre for centre, _ in squares]), [side for _, side in squares], CROP_PX, *turned)


def _outlines(data: StudyData) -> list[NDArray[np.bool_]]:
    return [mask for image in data.images() for _, mask in image.findings if mask.sum() > MIN_AREA_PX]


def _tissue_square(
    rng: np.random.RandomState, images: Sequence[StudyImage], outlines: Sequence[NDArray[np.bool_]]
) -> tuple[MaskedImage, tuple[NDArray[np.float64], float]]:
    """An image with an outline on normal tissue, and centre and side of a square around it that is free of lesions."""
    while True:
        rng.randint(1), rng.rand()  # likewise: the data set
        image = images[rng.randint(len(images))]
        if rng.rand() < 0.6:
            outline = outlines[rng.randint(len(outlines))]
            shape = borrow_shape(rng, outline, rng.uniform(0.4, 1.1))
        else:
            shape = random_blob(rng, rng.randint(10, 100))
        mask = place(rng, shape, tissue_of(image), tries=10)
        if mask is not None and mask.any():
            centre, side, _ = lesion_square(mask, rng.uniform(*TISSUE_CONTEXT))
            if not image.labelled_within(centre, 0.6 * side):
                return masked(image, mask, NORMAL), (centre, side)


def _outlines_on_normal_images(data: StudyData, per_image: int) -> list[MaskedImage]:
    """Normal validation images with outlines of real validation lesions placed on their tissue."""
    rng, outlines = np.random.RandomState(0), _outlines(data)
    chosen: list[MaskedImage] = []
    for image in (one for one in data.images() if one.is_normal):
        count, tissue = len(chosen) + per_image, tissue_of(image)
        for _ in range(20 * per_image):
            outline = outlines[rng.randint(len(outlines))]
            mask = place(rng, borrow_shape(rng, outline, rng.uniform(0.6, 1.0)), tissue)
            chosen += [] if mask is None else [masked(image, mask, NORMAL)]
            if len(chosen) == count:
                break
    return chosen


def painted_into_normal(data: StudyData, per_image: int = 2, steps: int = 12, *, validator: Any = "tiny") -> dict[str, Any]:
    """Share of edits of normal images in which the validator finds a lesion at Dice >= 0.7, and voxels changed outside."""
    places, words = _outlines_on_normal_images(data, per_image), data.finding_words
    inpaint, validate = Painter(num_inference_steps=steps).transform(), LatentValidate(validator)
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
        **{f"found_{kind}_prompt": float(np.mean(np.array(each) >= ACCEPTED_DICE)) for kind, each in scores.items()},
        **{f"mean_dice_{kind}_prompt": float(np.mean(each)) for kind, each in scores.items()},
        "voxels_changed_outside": float(outside),
    }


def measure(data: StudyData) -> dict[str, Any]:
    """All figures of the embedded models as one dictionary; StudyInputError where no data set has lesions and normal images."""
    mixed = next((each for each in data.each() if each.is_mixed), None)
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
