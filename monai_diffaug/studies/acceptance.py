"""Does the validator accept what is right and refuse what is wrong? ``python -m monai_diffaug.studies.acceptance``.

Right: real validation lesions in place. Wrong on purpose: normal tissue without any lesion, and real lesions with a mask that was moved
by its diameter, put elsewhere in the image, or has twice or half the lesion's area. Prints, by kind, how many ``LatentValidate`` accepts,
and precision and recall of acceptance.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.studies.bad_masks import BAD_MASKS
from monai_diffaug.studies.bootstrap import Interval, interval
from monai_diffaug.studies.regions import free_places, real_lesions
from monai_diffaug.studies.report import write_json
from monai_diffaug.transforms.latent_validate import LatentValidate

__all__ = ["EMPTY", "RIGHT", "Acceptance", "Judged", "judge", "measure"]

RIGHT, EMPTY = "lesion in place", "no lesion at all"


@dataclass(frozen=True)
class Judged:
    """One verdict: the kind of sample, the image's group, whether it was accepted, the Dice that it rests on, and why not."""

    kind: str
    group: int
    accepted: bool
    dice: float
    reason: str = ""


@dataclass(frozen=True)
class Acceptance:
    """Figures of a set of verdicts.

    Attributes:
        accepted: share accepted, by kind, with 95 % intervals over the image groups.
        dice: mean Dice by kind.
        recall: share of the right samples that are accepted.
        precision: share of the accepted that are right, with right and wrong in equal number and the kinds of wrong alike.
        precision_against: the same against each kind of wrong alone.
        refused_for: how many right samples were refused for which condition; one may fail several.
    """

    accepted: dict[str, Interval]
    dice: dict[str, float]
    recall: Interval
    precision: Interval
    precision_against: dict[str, float]
    refused_for: dict[str, int]


def judge(
    n: int = 48, *, model: Any = "tiny", source: str = "breast_ultrasound", seed: int = 0, rule: LatentValidate | None = None
) -> list[Judged]:
    """Verdicts on ``n`` validation lesions (or all there are), each in place and with every bad mask, and on ``n`` free places.

    Args:
        n: lesions, and places without one.
        model: source of the validator.
        source: name of the data set.
        seed: of the choice, the bad masks and the validator's noise.
        rule: in place of the default ``LatentValidate(model)``.
    """
    validate = rule or LatentValidate(model, device="cpu")
    rng = np.random.RandomState(seed)
    lesions = real_lesions(n, source=source, seed=seed)
    judged: list[Judged] = []
    for i, lesion in enumerate(lesions):
        mask = lesion.mask[0].numpy() > 0
        tissue = normal_tissue(lesion.image.numpy().max(0) / 255, mask)
        candidates = {RIGHT: mask, **{kind: spoil(rng, mask, tissue) for kind, spoil in BAD_MASKS.items()}}
        for kind, region in candidates.items():
            if region is not None:
                verdict = validate(lesion.image, torch.from_numpy(region[None].astype(np.uint8)), seed=seed + i)
                judged.append(Judged(kind, lesion.group, verdict.accepted, verdict.score, verdict.reason))
    for i, free in enumerate(free_places(len(lesions), source=source, seed=seed)):
        verdict = validate(free.image, free.mask, seed=seed + i)
        judged.append(Judged(EMPTY, free.group, verdict.accepted, verdict.score, verdict.reason))
    return judged


def measure(judged: Sequence[Judged], *, resamples: int = 2000) -> Acceptance:
    """Shares, precision and recall with intervals that resample image groups.

    Raises:
        ValueError: no right samples, or no wrong ones.
    """
    kinds = [kind for kind in (RIGHT, EMPTY, *BAD_MASKS) if any(j.kind == kind for j in judged)]
    wrong = [kind for kind in kinds if kind != RIGHT]
    if RIGHT not in kinds or not wrong:
        raise ValueError(f"precision and recall need right and wrong samples, got {', '.join(kinds) or 'none'}")
    verdicts = np.array([j.accepted for j in judged], np.float64)
    kind_of = np.array([j.kind for j in judged])
    groups = np.array([j.group for j in judged])

    def share(kind: str, picks: NDArray[np.int64]) -> float:
        chosen = verdicts[picks][kind_of[picks] == kind]
        return float(chosen.mean()) if len(chosen) else float("nan")

    def precision(against: Sequence[str], picks: NDArray[np.int64]) -> float:
        right, false = share(RIGHT, picks), float(np.mean([share(kind, picks) for kind in against]))
        return right / (right + false) if right + false > 0 else float("nan")

    def of_kind(kind: str) -> Interval:
        members = np.flatnonzero(kind_of == kind)
        return interval(lambda picks: float(verdicts[members[picks]].mean()), groups[members], resamples=resamples)

    accepted = {kind: of_kind(kind) for kind in kinds}
    everything = np.arange(len(judged))
    return Acceptance(
        accepted=accepted,
        dice={kind: float(np.mean([j.dice for j in judged if j.kind == kind])) for kind in kinds},
        recall=accepted[RIGHT],
        precision=interval(lambda picks: precision(wrong, picks), groups, resamples=resamples),
        precision_against={kind: precision([kind], everything) for kind in wrong},
        refused_for=dict(Counter(name for j in judged if j.kind == RIGHT for name in _conditions(j.reason))),
    )


def _conditions(reason: str) -> list[str]:
    """The names in a verdict's reason, without their figures."""
    return [found[0].strip() for found in (re.match(r"[A-Za-z ]+", part.strip()) for part in reason.split(";")) if found]


def table(figures: Acceptance) -> str:
    """A line a kind, then precision and recall."""
    lines = [f"{'sample':<26}{'should be':<11}{'accepted':>9}{'n':>5}   {'share [95 %]':<22}{'mean Dice':>9}{'precision against':>19}"]
    for kind, share in figures.accepted.items():
        against = f"{figures.precision_against[kind]:.3f}" if kind in figures.precision_against else ""
        wanted = "accepted" if kind == RIGHT else "refused"
        count = round(share.value * share.n)
        lines.append(f"{kind:<26}{wanted:<11}{count:>9}{share.n:>5}   {share!s:<22}{figures.dice[kind]:>9.3f}{against:>19}")
    lines.append(f"recall {figures.recall}; precision {figures.precision} (right and wrong in equal number, the kinds of wrong alike)")
    if figures.refused_for:
        lines.append("lesions in place refused for: " + ", ".join(f"{name} {count}" for name, count in figures.refused_for.items()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="source of the validator")
    parser.add_argument("--n", type=int, default=48, help="lesions, and places without one")
    parser.add_argument("--source", default="breast_ultrasound")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures and all verdicts as JSON")
    args = parser.parse_args()
    judged = judge(args.n, model=args.model, source=args.source, seed=args.seed)
    figures = measure(judged)
    sys.stdout.write(f"{args.source}, validation groups, seed {args.seed}, validator {args.model}\n{table(figures)}\n")
    write_json({"settings": {**vars(args), "out": str(args.out)}, **asdict(figures), "verdicts": [asdict(j) for j in judged]}, args.out)


if __name__ == "__main__":
    main()
