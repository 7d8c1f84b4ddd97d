"""Is the validator a judge of lesions? Validators are compared on the same validation images.

Right: real lesions under their masks. Fake: the same places after the lesion was replaced by a flat patch, by the normal tissue of
another image, or by a lesion of another data set; and the outline of the lesion elsewhere in its image, on tissue that is as it was or
blurred. Prints the Dice on real lesions by data set, false alarms on crops of normal tissue, what ``LatentValidate`` accepts of each kind
and of the real lesions of each modality, and how well its Dice tells real from fake (AUC). ``--out`` writes the same as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.edit.validation_options import Validator
from monai_diffaug.masks.shapes import borrow_shape, place
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.studies.bootstrap import Interval, mean_interval
from monai_diffaug.studies.embedded_goals import false_alarm_rate, lesion_dice
from monai_diffaug.studies.masked_images import MaskedImage, cut_squares, lesion_square, lesions_of
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData, StudyInputError
from monai_diffaug.training.crops import blurred
from monai_diffaug.transforms.latent_validate import LatentValidate

__all__ = ["FAKES", "REAL", "JudgeFigures", "Judged", "auc", "figures_of", "samples", "table"]

REAL = "real lesion"
LEAST_LESION_PX = 20
SOFT_EDGE_PX = 1.5
BLUR_PX = 2.5
TRIES = 20

Rng = np.random.RandomState


@dataclass(frozen=True)
class Judged:
    """One verdict on a sample."""

    kind: str
    dataset: str
    modality: str
    group: int
    accepted: bool
    dice: float


@dataclass(frozen=True)
class JudgeFigures:
    """The figures of one validator.

    Attributes:
        lesion_dice: mean Dice in crops around real lesions, by data set.
        false_alarm_rate: share of crops of normal tissue in which it marks more than 2 %; None without normal images.
        accepted: share that ``LatentValidate`` accepts, by kind; a real lesion should be, a fake should not.
        accepted_by_modality: the same of real lesions, by modality.
        accepted_by_dataset: and by data set.
        auc: chance that a real lesion has a larger Dice than a fake, by kind of fake, and of all ("all").
    """

    lesion_dice: dict[str, float]
    false_alarm_rate: float | None
    accepted: dict[str, Interval]
    accepted_by_modality: dict[str, Interval]
    accepted_by_dataset: dict[str, Interval]
    auc: dict[str, float]

    @property
    def mean_dice(self) -> float:
        return float(np.mean(list(self.lesion_dice.values())))


def _pasted(rng: Rng, one: MaskedImage, filling: Tensor) -> MaskedImage:
    """The image with a filling (C, H, W) under its mask, with a hard or a soft edge."""
    mask = one.mask.float()
    soft = mask if rng.rand() < 0.5 else torch.maximum(mask, blurred(mask[None], SOFT_EDGE_PX)[0])
    picture = (one.image.float() * (1 - soft) + filling.float() * soft).round().clamp(0, 255)
    return replace(one, image=picture.to(torch.uint8))


class _Lesion(NamedTuple):
    """A real lesion, its data set, and everything that is labelled on its image (H, W)."""

    image: MaskedImage
    dataset: str
    labelled: NDArray[np.bool_]


def _flat(rng: Rng, lesion: _Lesion, others: Sequence[_Lesion]) -> MaskedImage:
    return _pasted(rng, lesion.image, torch.full_like(lesion.image.image, int(rng.randint(256))))


def _tissue(rng: Rng, lesion: _Lesion, others: Sequence[_Lesion]) -> MaskedImage | None:
    elsewhere = _moved(rng, others[rng.randint(len(others))], lesion.image.mask_hw)
    return None if elsewhere is None else _pasted(rng, lesion.image, _aligned(lesion.image, elsewhere))


def _foreign(rng: Rng, lesion: _Lesion, others: Sequence[_Lesion]) -> MaskedImage | None:
    one = lesion.image
    foreign = [other.image for other in others if (other.image.modality, other.image.anatomy) != (one.modality, one.anatomy)]
    return _pasted(rng, one, _aligned(one, foreign[rng.randint(len(foreign))])) if foreign else None


def _normal(rng: Rng, lesion: _Lesion, others: Sequence[_Lesion]) -> MaskedImage | None:
    return _moved(rng, lesion, lesion.image.mask_hw)


def _blurred(rng: Rng, lesion: _Lesion, others: Sequence[_Lesion]) -> MaskedImage | None:
    moved = _moved(rng, lesion, lesion.image.mask_hw)
    return None if moved is None else _pasted(rng, moved, blurred(moved.image[None].float(), BLUR_PX)[0])


FAKES: dict[str, Callable[[Rng, _Lesion, Sequence[_Lesion]], MaskedImage | None]] = {
    "flat patch": _flat,
    "tissue of another image": _tissue,
    "lesion of another organ": _foreign,
    "normal tissue": _normal,
    "normal tissue, blurred": _blurred,
}


def _moved(rng: Rng, lesion: _Lesion, outline: NDArray[np.bool_]) -> MaskedImage | None:
    """The lesion's image with an outline on its normal tissue; None where there is no room."""
    one = lesion.image
    tissue = normal_tissue(one.image.numpy().max(0) / 255, lesion.labelled)
    for _ in range(TRIES):
        mask = place(rng, borrow_shape(rng, outline, rng.uniform(0.5, 1.0) * max(tissue.shape) / max(outline.shape)), tissue)
        if mask is not None and mask.sum() >= LEAST_LESION_PX:
            return replace(one, mask=torch.from_numpy(mask[None].astype(np.uint8)))
    return None


def _aligned(one: MaskedImage, donor: MaskedImage) -> Tensor:
    """The donor's picture (C, H, W), moved and scaled so that its mask lies on that of the image, in the image's channels."""
    height, width = one.image.shape[-2:]
    longer = max(height, width)
    (centre, side, _), (from_centre, from_side, _) = lesion_square(one.mask_hw, 1.0), lesion_square(donor.mask_hw, 1.0)
    scale = from_side / side
    frame = from_centre + scale * (np.array([(height - 1) / 2, (width - 1) / 2]) - centre)
    square = cut_squares([donor.image.float()], frame[None], [longer * scale], longer)[0]
    top, left = (longer - height) // 2, (longer - width) // 2
    square = square[:, top : top + height, left : left + width]
    return square.mean(0, keepdim=True) if len(one.image) == 1 else square.expand(3, -1, -1)


def samples(data: StudyData, n: int, seed: int = 0) -> Iterator[tuple[str, str, MaskedImage]]:
    """Kind, data set and image: at most ``n`` real validation lesions of each data set, and a fake of each kind for each of them.

    Raises:
        StudyInputError: the validation list shows no lesion.
    """
    rng = np.random.RandomState(seed)
    chosen: list[_Lesion] = []
    for each in data.each():
        lesions = [
            _Lesion(lesion, image.dataset, image.labelled) for image in each.images() for lesion in lesions_of([image], LEAST_LESION_PX)
        ]
        chosen += [lesions[i] for i in rng.permutation(len(lesions))[:n]]
    if not chosen:
        raise StudyInputError(f'this study needs labelled lesions in the "validation" list, and {data.file} shows none ({data.title})')
    for lesion in chosen:
        yield REAL, lesion.dataset, lesion.image
        for kind, spoil in FAKES.items():
            fake = spoil(rng, lesion, chosen)
            if fake is not None:
                yield kind, lesion.dataset, fake


def auc(real: Sequence[float], fake: Sequence[float]) -> float:
    """Chance that a real sample scores higher than a fake; ties count half.

    >>> auc([0.9, 0.8], [0.1, 0.8])
    0.875
    """
    first, second = np.asarray(real)[:, None], np.asarray(fake)[None]
    return float(((first > second) + 0.5 * (first == second)).mean())


def figures_of(judged: Sequence[Judged], dice: dict[str, float], alarms: float | None) -> JudgeFigures:
    """The figures of one validator from its verdicts, its Dice by data set and its false alarms."""

    def share(members: Sequence[Judged]) -> Interval:
        return mean_interval([m.accepted for m in members], [f"{m.dataset} {m.group}" for m in members])

    kinds = [kind for kind in (REAL, *FAKES) if any(j.kind == kind for j in judged)]
    real = [j for j in judged if j.kind == REAL]
    scores = {kind: [j.dice for j in judged if j.kind == kind] for kind in kinds}
    fakes = {kind: values for kind, values in scores.items() if kind != REAL}
    against = {**fakes, "all": [score for values in fakes.values() for score in values]}
    return JudgeFigures(
        lesion_dice=dice,
        false_alarm_rate=alarms,
        accepted={kind: share([j for j in judged if j.kind == kind]) for kind in kinds},
        accepted_by_modality={name: share([j for j in real if j.modality == name]) for name in dict.fromkeys(j.modality for j in real)},
        accepted_by_dataset={name: share([j for j in real if j.dataset == name]) for name in dict.fromkeys(j.dataset for j in real)},
        auc={kind: auc(scores[REAL], values) for kind, values in against.items() if values},
    )


def table(figures: dict[str, JudgeFigures]) -> str:
    """One line per figure, one column per validator."""
    columns = list(figures.values())
    first = columns[0]

    def line(name: str, goal: str, cells: Sequence[str]) -> str:
        return f"{name:<52}{goal:>9}" + "".join(f"{cell:>24}" for cell in cells)

    lines = [line("", "goal", [source[-22:] for source in figures])]
    for name in first.lesion_dice:
        lines.append(line(f"Dice, {name or 'all'}", "", [f"{each.lesion_dice[name]:.3f}" for each in columns]))
    lines.append(line("Dice, mean of data sets", ">= 0.75", [f"{each.mean_dice:.3f}" for each in columns]))
    if first.false_alarm_rate is not None:
        lines.append(line("false alarms on normal crops", "<= 0.08", [f"{each.false_alarm_rate:.3f}" for each in columns]))
    for kind, share in first.accepted.items():
        goal = "<= 0.05" if kind == "flat patch" else ""
        lines.append(line(f"accepted, {kind} (n={share.n})", goal, [str(each.accepted[kind]) for each in columns]))
    for group, name in (("accepted_by_modality", "real, "), ("accepted_by_dataset", "real, ")):
        for key, share in getattr(first, group).items():
            cells = [str(getattr(each, group)[key]) for each in columns]
            lines.append(line(f"accepted, {name}{key or 'all'} (n={share.n})", "", cells))
    lines += [line(f"AUC, real against {kind}", "", [f"{each.auc[kind]:.3f}" for each in columns]) for kind in first.auc]
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    if options.n < 1:
        raise StudyInputError(f"--n must be 1 or more, got {options.n}")
    try:
        rule = Validator(min_texture=options.min_texture)
    except ValueError as error:
        raise StudyInputError(str(error)) from error
    listed = list(samples(data, options.n, options.seed))
    mixed = next((each for each in data.each() if each.is_mixed), None)
    figures = {}
    for source in options.model:
        validate = LatentValidate(source, window=(0.0, 255.0), device="cpu", options=rule)
        judged = []
        for i, (kind, name, one) in enumerate(listed):
            verdict = validate(one.image, one.mask, seed=options.seed + i)
            judged.append(Judged(kind, name, one.modality, one.group, verdict.accepted, verdict.score))
        alarms = None if mixed is None else false_alarm_rate(mixed, model=source)
        figures[source] = figures_of(judged, lesion_dice(data, model=source), alarms)
    return f"{data.title}, validation groups, seed {options.seed}\n{table(figures)}", {"validators": figures}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__, model=None, repaints=False)
    parser.add_argument(
        "--model", nargs="+", default=["tiny"], metavar="SOURCE", help="validators to compare; default tiny, the embedded one"
    )
    parser.add_argument("--n", type=int, default=40, help="lesions per data set at most; default %(default)s")
    parser.add_argument("--min-texture", type=float, default=0.0, metavar="X", help="Validator(min_texture); default 0")
    return run_study(parser, _study, arguments, needs="labelled lesions")
