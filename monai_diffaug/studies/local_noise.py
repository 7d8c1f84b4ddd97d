"""The local-noise experiment of MILA-TMGDiff: ``python -m monai_diffaug.studies.local_noise``.

Prints how far local SSIM inside the mask falls for each noise scale g and both noise sources, beside the figures of Cao
et al. 2026 (other images and a model of another size: the order of magnitude is what can be compared), how far each
result is from its g = 0 twin, and the number of voxels that changed outside the mask. A fall says that the content
changed, not that it became better: noise alone takes local SSIM down by about 100 % too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.files.fidelity import change_outside, local_ssim
from monai_diffaug.geometry.roi import Roi, crop, paste, roi_around
from monai_diffaug.geometry.window import window_of
from monai_diffaug.masks.soft_edge import composite
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.prompts import compose_prompt, vocabulary_of
from monai_diffaug.sampling.inpaint_latents import inpaint_latents
from monai_diffaug.sampling.inversion import invert_latents
from monai_diffaug.sampling.noise import LOCAL_NOISE, local_noise, slice_noise

__all__ = ["GROUPS", "Case", "Sweep", "cases_of", "finding_cases", "laws", "measure", "sweep", "tissue_cases"]

SCALES = (0.0, 0.3, 0.5, 0.8, 1.0)
NOISE_SOURCES = ("random", "inverted")
MIN_AREA_PX = 60
ROUND_TRIP_TOLERANCE = 0.05  # of local SSIM, between the inverted g = 0 result and the VAE's own round trip
RISE_TOLERANCE = 0.03  # a falling curve may rise by this much between two scales: few images, one seed
LEAST_FALL = 0.05  # of local SSIM over all scales, to be called a fall
FLAT_SHARE = 0.35  # a flat curve moves by less than this share of what the twin's curve falls by


class Group(NamedTuple):
    """Images of one kind and the fall of local SSIM in percent that the paper reports for its own, if any."""

    name: str
    sources: tuple[str, ...]
    paper_percent: float | None
    paper_images: str


GROUPS = (
    Group("chest x-ray", ("chest_xray",), 97.9, "chest x-ray"),
    Group("abdominal CT", ("spleen_ct",), 103.3, "pelvic CT"),
    Group("brain CT", ("brain_ct_haemorrhage", "brain_ct_stroke"), 42.2, "brain CT"),
    Group("MRI", ("brain_mri_tumour", "prostate_mri"), None, ""),
)


class Case(NamedTuple):
    """One edit to make: image (1 or 3, H, W) uint8, mask (1, H, W) uint8, prompt."""

    image: Tensor
    mask: Tensor
    prompt: str


@dataclass(frozen=True)
class Sweep:
    """One image repainted with one noise source at every noise scale.

    Attributes:
        scales: the noise scales g.
        to_original: local SSIM inside the mask to the original, for each g.
        to_twin: the same to the result at the first g, which is 0.
        round_trip: local SSIM of the VAE's round trip to the original: what a perfect reproduction could reach.
        to_round_trip: local SSIM of the first result to the VAE's round trip.
        changed_outside: voxels that differ outside the mask, all scales together.
    """

    scales: tuple[float, ...]
    to_original: tuple[float, ...]
    to_twin: tuple[float, ...]
    round_trip: float
    to_round_trip: float
    changed_outside: int


def _case(image: np.ndarray, mask: np.ndarray, prompt: str, colour: bool) -> Case:
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return Case(pixels if colour else pixels[:1], torch.from_numpy(mask[None].astype(np.uint8)), prompt)


def finding_cases(source: str, count: int) -> list[Case]:
    """The first ``count`` validation images with a finding of 60 px or more, its largest part as the mask."""
    from monai_diffaug.masks.shapes import largest_component
    from monai_diffaug.training.embedded.datasets import load_samples

    cases: list[Case] = []
    for sample in load_samples(source, "validation"):
        for finding, mask in sample.masks():
            part = largest_component(mask)
            if len(cases) < count and part.sum() >= MIN_AREA_PX:
                vocabulary = vocabulary_of(sample.source.modality)
                prompt = compose_prompt(vocabulary.modality, sample.source.anatomy, finding)
                cases.append(_case(sample.image, part, prompt, sample.source.modality in ("endoscopy", "fundus")))
                break
    return cases


def tissue_cases(source: str, count: int, seed: int = 0) -> list[Case]:
    """Smooth random regions on the tissue of the first ``count`` validation images, for sources without masks."""
    from monai_diffaug.masks.shapes import place, random_blob
    from monai_diffaug.training.embedded.latent_bank import MaskedCropSampler

    sampler = MaskedCropSampler("validation", seed, (source,))
    cases: list[Case] = []
    for sample in sampler.samples[source]:
        mask = place(sampler.rng, random_blob(sampler.rng, sampler.rng.randint(30, 80)), sampler.tissue(sample))
        if mask is not None and len(cases) < count:
            vocabulary = vocabulary_of(sample.source.modality)
            prompt = compose_prompt(vocabulary.modality, sample.source.anatomy, "lung nodule")
            cases.append(_case(sample.image, mask, prompt, False))
    return cases


def cases_of(group: Group, count: int) -> list[Case]:
    """``count`` cases from each source of a group."""
    cases = []
    for source in group.sources:
        cases += finding_cases(source, count) or tissue_cases(source, count)
    return cases


@torch.no_grad()
def sweep(
    model: Inpainter,
    case: Case,
    noise_source: str,
    *,
    scales: Sequence[float] = SCALES,
    seed: int = 0,
    num_inference_steps: int = 12,
    guidance_scale: float = 1.0,
) -> Sweep:
    """Repaint one image under its hard mask at each noise scale, everything else equal.

    Args:
        model: the inpainter; the square around the mask is resampled to its size.
        case: image, mask, prompt.
        noise_source: "random": the noise at g = 0 is drawn; "inverted": it is the DDIM inversion of the image.
        scales: increasing noise scales g, the first one 0.
        seed: of both noises.
        num_inference_steps: of the sampler.
        guidance_scale: 1 (none) is where the laws hold; the inversion is always unguided.

    Raises:
        ValueError: unknown noise source, or the first scale is not 0.
    """
    if noise_source not in NOISE_SOURCES:
        raise ValueError(f"noise_source must be one of {', '.join(NOISE_SOURCES)}, got {noise_source!r}")
    if not scales or scales[0] != 0.0:
        raise ValueError(f"scales must start with 0, the twin that the others are compared with, got {tuple(scales)}")
    roi, window = roi_around(case.mask[0], model.size_px), window_of(case.image)
    seen = crop(window.to_model(case.image), roi, model.size_px).expand(3, -1, -1)[None].to(model.device)
    hard = (crop(case.mask.float(), roi, model.size_px) > 0).float()[None].to(model.device)
    clean = model.encode(seen)
    masked = model.encode(seen * (hard < 0.5)) if model.takes_mask else None
    md, context = model.latent_mask(hard), model.encode_text([case.prompt])
    eps = slice_noise(seed, [0], tuple(clean.shape[1:])).to(clean)
    eta = slice_noise(seed, [0], tuple(clean.shape[1:]), purpose=LOCAL_NOISE).to(clean)
    if noise_source == "inverted":
        found = invert_latents(
            model.denoise, model.scheduler, clean=clean, mask=md, masked=masked, context=context, num_inference_steps=num_inference_steps
        )
        eps = found.noise
    count = len(scales)
    latents = inpaint_latents(
        model.denoise,
        model.scheduler,
        clean=clean.expand(count, -1, -1, -1),
        noise=torch.cat([local_noise(eps, eta, scale_g=g, mask=md) for g in scales]),
        mask=md.expand(count, -1, -1, -1),
        masked=None if masked is None else masked.expand(count, -1, -1, -1),
        context=context.expand(count, -1, -1),
        negative_context=model.encode_text([""]).expand(count, -1, -1) if guidance_scale > 1 else None,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
    )
    round_trip, *results = (_pasted(case, picture, roi) for picture in model.decode(torch.cat([clean, latents])))
    original, mask = case.image.numpy(), case.mask.numpy()
    return Sweep(
        tuple(scales),
        tuple(local_ssim(original, result, mask) for result in results),
        tuple(local_ssim(results[0], result, mask) for result in results),
        local_ssim(original, round_trip, mask),
        local_ssim(round_trip, results[0], mask),
        sum(change_outside(original, result, mask) for result in results),
    )


def _pasted(case: Case, picture: Tensor, roi: Roi) -> np.ndarray:
    """(3, size, size) in [-1, 1] composited under the hard mask into the case's image, as an array."""
    picture = picture.cpu().clamp(-1, 1)
    if case.image.shape[0] == 1:
        picture = picture.mean(0, keepdim=True)
    canvas = paste(case.image.float(), window_of(case.image).to_image(picture), roi)
    edited: np.ndarray = composite(case.image, canvas, case.mask.float()).numpy()
    return edited


def laws(random: Sequence[Sweep], inverted: Sequence[Sweep]) -> dict[str, bool]:
    """Which of the four laws of local noise hold for the mean curves of some images.

    "random_moves_away_from_twin", "random_keeps_distance_to_original", "inverted_moves_away_from_original" and
    "inverted_zero_is_the_round_trip" (at guidance 1). The tolerances are this module's constants.
    """
    twin, flat, falling = _mean(random, "to_twin"), _mean(random, "to_original"), _mean(inverted, "to_original")
    reproduced = float(np.mean([s.to_round_trip for s in inverted]))
    return {
        "random_moves_away_from_twin": _falls(twin),
        "random_keeps_distance_to_original": float(np.ptp(flat)) <= FLAT_SHARE * (twin[0] - twin[-1]),
        "inverted_moves_away_from_original": _falls(falling),
        "inverted_zero_is_the_round_trip": reproduced >= 1 - ROUND_TRIP_TOLERANCE,
    }


def _mean(sweeps: Sequence[Sweep], curve: str) -> list[float]:
    return [float(v) for v in np.mean([getattr(s, curve) for s in sweeps], axis=0)]


def _falls(curve: Sequence[float]) -> bool:
    return bool(np.diff(curve).max() <= RISE_TOLERANCE and curve[0] - curve[-1] >= LEAST_FALL)


def measure(
    images_per_source: int = 4,
    *,
    model: object = "tiny",
    scales: Sequence[float] = SCALES,
    num_inference_steps: int = 12,
    guidance_scale: float = 1.0,
    groups: Sequence[Group] = GROUPS,
) -> dict[str, dict[str, list[Sweep]]]:
    """Sweeps by group and noise source, on validation images; the seed is the image's position."""
    inpainter = shared_model(spec_of("inpainter", model), "cpu", load_inpainter)
    return {
        group.name: {
            noise_source: [
                sweep(
                    inpainter,
                    case,
                    noise_source,
                    scales=scales,
                    seed=seed,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                )
                for seed, case in enumerate(cases_of(group, images_per_source))
            ]
            for noise_source in NOISE_SOURCES
        }
        for group in groups
    }


def table(sweeps: Mapping[str, Mapping[str, Sequence[Sweep]]], groups: Sequence[Group] = GROUPS) -> str:
    """Fall of local SSIM inside the mask in percent by noise scale, the paper's figure, voxels changed outside, the laws."""
    scales = next(iter(next(iter(sweeps.values())).values()))[0].scales
    columns = "".join(f"{f'g={g:g}':>8}" for g in scales)
    lines = [f"{'fall of local SSIM in the mask, %':<46}{columns}{'VAE':>8}{'paper':>20}{'outside':>9}{'n':>4}"]
    for group in groups:
        for noise_source, of_source in sweeps[group.name].items():
            paper = "" if group.paper_percent is None else f"{group.paper_percent:.1f} ({group.paper_images})"
            outside, vae = sum(s.changed_outside for s in of_source), 100 * (1 - np.mean([s.round_trip for s in of_source]))
            for curve, name in (("to_original", "to the original"), ("to_twin", "to the g=0 twin")):
                falls = "".join(f"{100 * (1 - value):>8.1f}" for value in _mean(of_source, curve))
                rest = f"{vae:>8.1f}{paper:>20}{outside:>9}{len(of_source):>4}" if curve == "to_original" else ""
                lines.append(f"{f'{group.name}, {noise_source}, {name}':<46}{falls}{rest}")
    every = {s: [sweep for of_group in sweeps.values() for sweep in of_group[s]] for s in NOISE_SOURCES}
    lines += [f"{name:<46}{'yes' if holds else 'NO'}" for name, holds in laws(every["random"], every["inverted"]).items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4, help="images a data set")
    parser.add_argument("--model", default="tiny", help="a source of DiffusionLocalInpaint's model=")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="the laws hold at 1, without guidance")
    parser.add_argument("--out", type=Path, help="write every sweep as JSON")
    args = parser.parse_args()
    sweeps = measure(args.images, model=args.model, num_inference_steps=args.steps, guidance_scale=args.guidance_scale)
    sys.stdout.write(table(sweeps) + "\n")
    if args.out:
        plain = {group: {source: [asdict(s) for s in of] for source, of in by.items()} for group, by in sweeps.items()}
        args.out.write_text(json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    main()
