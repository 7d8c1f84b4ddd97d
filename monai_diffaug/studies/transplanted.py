"""Transplanted lesions: does the seam show, is the donor kept, and does the validator accept them?

Training lesions are put into validation images (normal ones where there are any), with the same donors, geometry and places for every
row. Rows differ in blending and in the strength of the diffusion model. "pasted" is neither matched nor joined, with a soft edge.
Seam: the jump of the grey value across the lesion's outline over the original image's at the same place, and the largest on contours up
to 12 pixels outside; medians. Likeness: correlation with the donor's own pixels inside the outline; mean. Accepted: share that the
validator accepts. 95 % intervals over groups of the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.data.donor_bank import DonorBank
from monai_diffaug.edit.transplant_options import KEPT_NOISE, Blend, Transplant
from monai_diffaug.studies.bootstrap import Interval, interval
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.seam import seam_profile
from monai_diffaug.studies.study_images import TRAINING, StudyData, StudyImage, StudyInputError
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.transplant_graft import Graft
from monai_diffaug.transforms.transplant_lesion import TransplantLesion

__all__ = ["Arm", "Measured", "Row", "arms_of", "donors_of", "measure_transplants", "rows_of", "table"]

STRENGTHS = (0.0, 0.2, 0.3, 0.4)
OFFSETS_PX = tuple(range(0, 13, 2))


@dataclass(frozen=True)
class Arm:
    """One way of transplanting."""

    name: str
    blend: Blend
    strength: float


@dataclass(frozen=True)
class Measured:
    """One transplant."""

    arm: str
    group: int
    seam: float  # across the outline, over the original's
    worst_seam: float  # largest on contours outside
    likeness: float
    accepted: bool


@dataclass(frozen=True)
class Row:
    """The figures of an arm."""

    arm: str
    seam: Interval
    worst_seam: Interval
    likeness: Interval
    accepted: Interval


def arms_of(strengths: Sequence[float]) -> list[Arm]:
    """The rows of the table: what is pasted as it is, the other ways of blending, and the default at each strength."""
    others = [
        Arm("pasted", Blend(match="none", join="soft"), 0.0),
        Arm("rim matched, soft join", Blend(join="soft"), 0.0),
        Arm("spread matched", Blend(match="spread"), 0.0),
    ]
    defaults = [Arm(f"strength {strength:g}", Blend(), strength) for strength in strengths]
    positive = sorted(strength for strength in strengths if strength > 0)
    if not positive:
        return [*others, *defaults]
    middle = positive[len(positive) // 2]
    return [*others, *defaults, Arm(f"strength {middle:g}, detail not kept", Blend(keep_detail=False), middle)]


def donors_of(images: Sequence[StudyImage]) -> DonorBank:
    """The lesions of the training images; StudyInputError where there is none."""
    samples: list[Mapping[Hashable, Any]] = []
    for image in images:
        label = np.zeros(image.labelled.shape, np.uint8)
        for value, (_, mask) in enumerate(image.findings, start=1):
            label[mask] = value
        words = {str(value): word for value, (word, _) in enumerate(image.findings, start=1)}
        sample: dict[Hashable, Any] = {
            "image": image.image,
            "label": torch.from_numpy(label[None]),
            "finding": words,
            "group": image.group,
            "modality": image.modality,
            "anatomy": image.anatomy,
        }
        samples.append(sample)
    try:
        return DonorBank.of(samples, group_key="group")
    except ValueError as error:
        raise StudyInputError(f'this study needs labelled lesions in the "{TRAINING}" list: {error}') from error


def measure_transplants(
    targets: Sequence[StudyImage], donors: DonorBank, arms: Sequence[Arm], painter: Painter, judge: LatentValidate
) -> list[Measured]:
    """Put one donor into each target, in every arm; targets without a free place are left out."""
    measured = []
    for arm in arms:
        inpaint = painter.transform(KEPT_NOISE) if arm.strength > 0 else "tiny"
        transplant = TransplantLesion(donors, model=inpaint, strength=arm.strength, transplant=Transplant(blend=arm.blend))
        for i, target in enumerate(targets):
            label = torch.from_numpy(target.labelled[None].astype(np.uint8))
            pending = transplant.denoise(target.image, label, group=str(target.group), seed=painter.seed + i)
            if pending.graft is None:
                continue
            result = transplant.finish(pending)
            image, mask = torch.as_tensor(result.image), torch.as_tensor(result.mask)
            profile = [each.to_original for each in seam_profile(target.image.numpy(), image.numpy(), mask.numpy(), OFFSETS_PX)]
            verdict = judge(image, mask, seed=painter.seed + i)
            likeness = _likeness(image.numpy(), pending.graft)
            measured.append(Measured(arm.name, target.group, profile[0], max(profile), likeness, verdict.accepted))
    return measured


def _likeness(image: NDArray[np.generic], graft: Graft) -> float:
    """Correlation of grey values with the donor's own pixels inside the outline."""
    here, there = graft.mask[0], graft.lesion.mask[0]
    if here.sum() != there.sum():
        raise ValueError("the lesion leaves the image")  # unreachable: a place holds all of it
    values = image.astype(np.float64).mean(0)[here], graft.lesion.pixels[:, 0].astype(np.float64).mean(0)[there]
    return float(np.corrcoef(*values)[0, 1]) if min(each.std() for each in values) > 0 else float("nan")


def rows_of(measured: Sequence[Measured]) -> list[Row]:
    """One row per arm, in order."""
    rows = []
    for name in dict.fromkeys(each.arm for each in measured):
        members = [each for each in measured if each.arm == name]
        groups = [each.group for each in members]

        def figure(field: str, statistic: Callable[[Any], Any], members: list[Measured] = members, groups: list[int] = groups) -> Interval:
            values = np.array([getattr(each, field) for each in members], np.float64)
            return interval(lambda picks: float(statistic(values[picks])), groups)

        row = figure("seam", np.median), figure("worst_seam", np.median), figure("likeness", np.nanmean), figure("accepted", np.mean)
        rows.append(Row(name, *row))
    return rows


def table(rows: Sequence[Row]) -> str:
    """One line per arm."""
    heads = "".join(f"{head:<20}" for head in ("seam", "worst seam", "likeness", "accepted"))
    lines = [f"{'':<34}{'n':>4}  {heads}"]
    for row in rows:
        figures = (row.seam, row.worst_seam, row.likeness, row.accepted)
        cells = "".join(f"{f'{each.value:.2f} [{each.low:.2f}, {each.high:.2f}]':<20}" for each in figures)
        lines.append(f"{row.arm:<34}{row.seam.n:>4}  {cells}".rstrip())
    return "\n".join(lines)


def _targets(data: StudyData, n: int, seed: int) -> list[StudyImage]:
    """Up to ``n`` validation images in random order: normal ones, else those with lesions, beside which there is room."""
    images = data.images()
    chosen = [image for image in images if image.is_normal] or images
    return [chosen[i] for i in np.random.RandomState(seed).permutation(len(chosen))[:n]]


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, Mapping[str, Any]]:
    if options.n < 1 or not all(0 <= strength <= 1 for strength in options.strengths):
        raise StudyInputError(f"--n must be 1 or more and --strengths in [0, 1], got {options.n} and {options.strengths}")
    painter, judge = Painter.of(options), LatentValidate(options.validator, device="cpu")
    texts, figures = [], {}
    for name in data.datasets:
        only = data.only(name)
        donors, targets = donors_of(only.images(TRAINING)), _targets(only, options.n, painter.seed)
        measured = measure_transplants(targets, donors, arms_of(options.strengths), painter, judge)
        if not measured:
            raise StudyInputError(f"no image of {only.title} has a free place for one of {len(donors)} lesions")
        rows = rows_of(measured)
        texts.append(f"{only.title}, {len(donors)} donors, {painter}\n{table(rows)}")
        figures[name] = {"rows": [asdict(row) for row in rows], "transplants": [asdict(each) for each in measured]}
    return "\n\n".join(texts), figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--n", type=int, default=16, help="images that get a lesion, per data set; default %(default)s")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS, metavar="X", help="of the model; default 0 .2 .3 .4")
    parser.add_argument("--validator", default="tiny", metavar="SOURCE", help="source of the validator; default tiny")
    return run_study(parser, _study, arguments, needs="labelled lesions", preferred=("breast_ultrasound", "colonoscopy_polyp"))
