"""The local-noise experiment of MILA-TMGDiff: lesions repainted with several noise scales.

Prints how far local SSIM inside the mask falls for each noise scale g and both noise sources, next to the figures of Cao et al. 2026 (other
images and a model of another size: compare the order of magnitude), the distance of each result to its g = 0 twin, and the number of
voxels that changed outside the mask. Lower local SSIM means changed content, not better content: noise alone lowers it by about 100 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.edit.options import InpaintOptions, Noise, SoftEdge
from monai_diffaug.files.fidelity import change_outside, local_ssim
from monai_diffaug.masks.shapes import place, random_blob
from monai_diffaug.masks.soft_edge import composite
from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.masked_images import MaskedImage, first_lesions, masked, tissue_of
from monai_diffaug.studies.painter import Painter, through_vae
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData

__all__ = ["GROUPS", "Group", "Sweep", "groups_of", "images_of", "laws", "measure", "sweep", "table"]

SCALES = (0.0, 0.3, 0.5, 0.8, 1.0)
NOISE_SOURCES = ("random", "inverted")
BLOB_SIDE_PX = (30, 80)
ROUND_TRIP_TOLERANCE = 0.05  # of local SSIM, between the inverted g = 0 result and the VAE's own round trip
RISE_TOLERANCE = 0.03  # a falling curve may rise by this much between two scales: few images, one seed
LEAST_FALL = 0.05  # of local SSIM over all scales, to be called a fall
FLAT_SHARE = 0.35  # a flat curve moves by less than this share of the fall of the twin's curve


class Group(NamedTuple):
    """Data sets of one kind, and the fall of local SSIM in percent that the paper reports for its images, if any."""

    name: str
    datasets: tuple[str, ...]
    paper_percent: float | None = None
    paper_images: str = ""


GROUPS = (
    Group("chest x-ray", ("chest_xray",), 97.9, "chest x-ray"),
    Group("abdominal CT", ("spleen_ct",), 103.3, "pelvic CT"),
    Group("brain CT", ("brain_ct_haemorrhage", "brain_ct_stroke"), 42.2, "brain CT"),
    Group("MRI", ("brain_mri_tumour", "prostate_mri")),
)


@dataclass(frozen=True)
class Sweep:
    """Local SSIM inside the mask of one image repainted with one noise source at every noise scale."""

    scales: tuple[float, ...]  # the noise scales g
    to_original: tuple[float, ...]  # SSIM of each result to the original
    to_twin: tuple[float, ...]  # SSIM of each result to that at the first g, which is 0
    round_trip: float  # SSIM of the VAE's round trip to the original: the score of a perfect reproduction
    to_round_trip: float  # SSIM of the first result to the VAE's round trip
    changed_outside: int  # voxels that differ outside the mask, all scales together


def groups_of(data: StudyData) -> list[Group]:
    """The groups of ``GROUPS`` that the data have, limited to the data sets used; other data sets are a group each."""
    known = [group._replace(datasets=tuple(name for name in group.datasets if name in data.datasets)) for group in GROUPS]
    others = [name for name in data.datasets if not any(name in group.datasets for group in known)]
    return [group for group in known if group.datasets] + [Group(data.only(name).title, (name,)) for name in others]


def images_of(data: StudyData, count: int, seed: int = 0) -> list[MaskedImage]:
    """The first ``count`` validation images of each data set that show a lesion, each with one.

    In a data set without labelled lesions they have smooth random regions on their tissue, and its first finding as the prompt.
    """
    chosen: list[MaskedImage] = []
    for name in data.datasets:
        of_set = data.only(name)
        images = of_set.images()
        lesions = first_lesions(images, count)
        rng = np.random.RandomState(seed)
        for image in () if lesions else images:
            mask = place(rng, random_blob(rng, rng.randint(*BLOB_SIDE_PX)), tissue_of(image))
            if mask is not None and len(lesions) < count:
                lesions.append(masked(image, mask, next(iter(of_set.finding_words), NORMAL)))
        chosen += lesions
    return chosen


def sweep(painter: Painter, images: Sequence[MaskedImage], noise_source: str, *, scales: Sequence[float] = SCALES) -> list[Sweep]:
    """Repaint images under their hard masks at each noise scale g, the first one 0, everything else equal.

    With the noise source "random" the noise at g = 0 is drawn, with "inverted" it is the DDIM inversion of the image.

    Raises:
        ValueError: unknown noise source, or the first scale is not 0.
    """
    if not scales or scales[0] != 0.0:
        raise ValueError(f"scales must start with 0, the twin that the others are compared with, got {tuple(scales)}")
    prompts = [one.prompt for one in images]
    options = [InpaintOptions(noise=Noise(source=noise_source, scale=g), soft_edge=SoftEdge(width_px_at_512=0.0)) for g in scales]
    edits = zip(*(painter.paint(images, prompts, each) for each in options), strict=True)
    results = [[edit.image.numpy() for edit in of_image] for of_image in edits]
    return [_measured(one, result, painter.model, scales) for one, result in zip(images, results, strict=True)]


def _measured(one: MaskedImage, results: Sequence[NDArray[np.uint8]], model: Any, scales: Sequence[float]) -> Sweep:
    original, mask = one.image.numpy(), one.mask.numpy()
    round_trip = composite(one.image, through_vae(one.image, one.mask[0], model), one.mask.float()).numpy()
    return Sweep(
        tuple(scales),
        tuple(local_ssim(original, result, mask) for result in results),
        tuple(local_ssim(results[0], result, mask) for result in results),
        local_ssim(original, round_trip, mask),
        local_ssim(round_trip, results[0], mask),
        sum(change_outside(original, result, mask) for result in results),
    )


def laws(random: Sequence[Sweep], inverted: Sequence[Sweep]) -> dict[str, bool]:
    """Check the four laws of local noise (at guidance 1) on the mean curves of some images; the tolerances are this module's constants."""
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


def measure(data: StudyData, painter: Painter, count: int = 4) -> dict[str, dict[str, list[Sweep]]]:
    """Sweeps by group and noise source, on ``count`` validation images of each data set."""
    chosen = {group.name: images_of(data.only(*group.datasets), count) for group in groups_of(data)}
    return {name: {source: sweep(painter, images, source) for source in NOISE_SOURCES} for name, images in chosen.items()}


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


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    sweeps = measure(data, Painter.of(options), options.images)
    return table(sweeps, groups_of(data)), sweeps


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__, guidance_scale=1.0)  # the laws hold without guidance
    parser.add_argument("--images", type=int, default=4, help="images per data set")
    preferred = [name for group in GROUPS for name in group.datasets]
    return run_study(parser, _study, arguments, needs="images, with lesions or without", preferred=preferred)
