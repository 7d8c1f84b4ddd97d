"""Does the validator accept what is right and refuse what is wrong?

Right: real validation lesions in place. Wrong on purpose: normal tissue without any lesion, and real lesions with a mask that was moved
by its diameter, put elsewhere in the image, or has twice or half the lesion's area. Prints the number that ``LatentValidate`` accepts per
kind, and precision and recall of acceptance.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.masks.shapes import borrow_shape, place
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.studies.bootstrap import Interval, interval, mean_interval
from monai_diffaug.studies.masked_images import free_places, real_lesions
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData
from monai_diffaug.transforms.latent_validate import LatentValidate

__all__ = ["BAD_MASKS", "EMPTY", "RIGHT", "Acceptance", "Judgement", "judge", "measure", "table"]

RIGHT, EMPTY = "lesion in place", "no lesion at all"
Mask = NDArray[np.bool_]


def shifted(rng: np.random.RandomState, mask: Mask, tissue: Mask) -> Mask | None:
    """The mask moved by its diameter up, down, left or right, next to its old place. None where it would leave the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    top, left = int(rows[0]), int(columns[0])
    steps = [(-height, 0), (height, 0), (0, -width), (0, width)]
    room_y, room_x = range(mask.shape[0] - height + 1), range(mask.shape[1] - width + 1)
    fitting = [(y, x) for y, x in steps if top + y in room_y and left + x in room_x]
    if not fitting:
        return None
    chosen = fitting[rng.randint(len(fitting))]
    moved: Mask = np.roll(mask, chosen, (0, 1))
    return moved


def elsewhere(rng: np.random.RandomState, mask: Mask, tissue: Mask) -> Mask | None:
    """The mask's outline on free tissue of the same image. None where there is no room."""
    return place(rng, borrow_shape(rng, mask, 1.0), tissue)


def grown(rng: np.random.RandomState, mask: Mask, tissue: Mask) -> Mask | None:
    """The mask dilated until its area is at least twice as large."""
    from scipy.ndimage import binary_dilation, generate_binary_structure

    wide, round_element = mask, generate_binary_structure(2, 1)
    while 0 < wide.sum() < min(2 * mask.sum(), mask.size):
        wide = binary_dilation(wide, round_element)
    result: Mask = wide
    return result


def shrunk(rng: np.random.RandomState, mask: Mask, tissue: Mask) -> Mask | None:
    """The half of the mask's pixels that lie deepest inside it."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(mask)
    inside = depth[mask]
    kept: Mask = mask & (depth >= np.quantile(inside, 0.5))
    return kept if kept.any() else None


BAD_MASKS: dict[str, Callable[[np.random.RandomState, Mask, Mask], Mask | None]] = {
    "moved by its diameter": shifted,
    "elsewhere in the image": elsewhere,
    "twice the area": grown,
    "half the area": shrunk,
}


@dataclass(frozen=True)
class Judgement:
    """One verdict: the kind of sample, the image's group, whether it was accepted, the Dice of the prediction, and why it was refused."""

    kind: str
    group: int
    accepted: bool
    dice: float
    reason: str = ""


@dataclass(frozen=True)
class Acceptance:
    """Figures of a set of verdicts, with 95 % intervals over the image groups."""

    accepted: dict[str, Interval]  # share accepted, by kind
    dice: dict[str, float]  # mean, by kind
    recall: Interval  # share of the right samples that are accepted
    precision: Interval  # share of the accepted that are right, with right and wrong in equal number and the kinds of wrong alike
    precision_against: dict[str, float]  # the same against each kind of wrong alone
    refused_for: dict[str, int]  # number of right samples that each condition refused; one sample may fail several


def judge(data: StudyData, n: int = 48, *, model: Any = "tiny", seed: int = 0, rule: LatentValidate | None = None) -> list[Judgement]:
    """Verdicts on ``n`` validation lesions (or all there are), each in place and with every bad mask, and on ``n`` free places.

    ``model`` is a source of the validator; ``rule`` replaces the default ``LatentValidate(model)``.
    """
    validate = rule or LatentValidate(model, device="cpu")
    rng = np.random.RandomState(seed)
    lesions = real_lesions(data, n, seed=seed)
    judgements: list[Judgement] = []
    for i, lesion in enumerate(lesions):
        mask = lesion.mask_hw
        tissue = normal_tissue(lesion.image.numpy().max(0) / 255, mask)
        candidates = {RIGHT: mask, **{kind: spoil(rng, mask, tissue) for kind, spoil in BAD_MASKS.items()}}
        for kind, candidate in candidates.items():
            if candidate is not None:
                verdict = validate(lesion.image, torch.from_numpy(candidate[None].astype(np.uint8)), seed=seed + i)
                judgements.append(Judgement(kind, lesion.group, verdict.accepted, verdict.score, verdict.reason))
    for i, free in enumerate(free_places(data, len(lesions), seed=seed)):
        verdict = validate(free.image, free.mask, seed=seed + i)
        judgements.append(Judgement(EMPTY, free.group, verdict.accepted, verdict.score, verdict.reason))
    return judgements


def measure(judgements: Sequence[Judgement], *, resamples: int = 2000) -> Acceptance:
    """Shares, precision and recall; ValueError without right samples or without wrong ones."""
    kinds = [kind for kind in (RIGHT, EMPTY, *BAD_MASKS) if any(j.kind == kind for j in judgements)]
    wrong = [kind for kind in kinds if kind != RIGHT]
    if RIGHT not in kinds or not wrong:
        raise ValueError(f"precision and recall need right and wrong samples, got {', '.join(kinds) or 'none'}")
    verdicts = np.array([j.accepted for j in judgements], np.float64)
    kind_of = np.array([j.kind for j in judgements])
    groups = np.array([j.group for j in judgements])

    def share(kind: str, picks: NDArray[np.int64]) -> float:
        chosen = verdicts[picks][kind_of[picks] == kind]
        return float(chosen.mean()) if len(chosen) else float("nan")

    def precision(against: Sequence[str], picks: NDArray[np.int64]) -> float:
        right, false = share(RIGHT, picks), float(np.mean([share(kind, picks) for kind in against]))
        return right / (right + false) if right + false > 0 else float("nan")

    accepted = {kind: mean_interval(verdicts[kind_of == kind], groups[kind_of == kind], resamples=resamples) for kind in kinds}
    everything = np.arange(len(judgements))
    return Acceptance(
        accepted=accepted,
        dice={kind: float(np.mean([j.dice for j in judgements if j.kind == kind])) for kind in kinds},
        recall=accepted[RIGHT],
        precision=interval(lambda picks: precision(wrong, picks), groups, resamples=resamples),
        precision_against={kind: precision([kind], everything) for kind in wrong},
        refused_for=dict(Counter(name for j in judgements if j.kind == RIGHT for name in _conditions(j.reason))),
    )


def _conditions(reason: str) -> list[str]:
    """The names in a verdict's reason, without their figures."""
    matches = (re.match(r"[A-Za-z ]+", part.strip()) for part in reason.split(";"))
    return [match[0].strip() for match in matches if match]


def table(figures: Acceptance) -> str:
    """One line per kind, then precision and recall."""
    lines = [f"{'sample':<26}{'should be':<11}{'accepted':>9}{'n':>5}   {'share [95 %]':<22}{'mean Dice':>9}{'precision against':>19}"]
    for kind, share in figures.accepted.items():
        against = f"{figures.precision_against[kind]:.3f}" if kind in figures.precision_against else ""
        target = "accepted" if kind == RIGHT else "refused"
        count = round(share.value * share.n)
        lines.append(f"{kind:<26}{target:<11}{count:>9}{share.n:>5}   {share!s:<22}{figures.dice[kind]:>9.3f}{against:>19}")
    lines.append(f"recall {figures.recall}; precision {figures.precision} (right and wrong in equal number, the kinds of wrong alike)")
    if figures.refused_for:
        lines.append("lesions in place refused for: " + ", ".join(f"{name} {count}" for name, count in figures.refused_for.items()))
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    judgements = judge(data, options.n, model=options.model, seed=options.seed)
    figures = measure(judgements)
    heading = f"{data.title}, validation groups, seed {options.seed}, validator {options.model}"
    return f"{heading}\n{table(figures)}", {**vars(figures), "verdicts": judgements}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__, model="validator", repaints=False)
    parser.add_argument("--n", type=int, default=48, help="lesions, and places without one")
    return run_study(parser, _study, arguments, needs="labelled lesions and normal images", preferred=("breast_ultrasound",))
