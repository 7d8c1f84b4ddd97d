"""Are erased lesions gone? Real validation lesions before and after ``EraseLesion``, for the validator.

Prints, per data set, how many lesions ``LatentValidate`` accepts as a lesion at their place before and after they were repainted as normal
tissue (the first candidate, whatever it is), under how many masks it finds nothing at all (``NothingFound``, the rule of ``EraseLesion``)
before and after, and how many lesions are erased when up to ``--max-tries`` candidates are drawn. The validator that judges also chooses
the candidate; the shares of the first candidate are free of that choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.bootstrap import Interval, mean_interval
from monai_diffaug.studies.masked_images import MaskedImage, lesions_of
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData, StudyInputError
from monai_diffaug.transforms.erase_lesion import EraseLesion
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.nothing_found import NothingFound

__all__ = ["COLUMNS", "Erasure", "erase_each", "measure", "table"]

DATASETS = ("breast_ultrasound", "colonoscopy_polyp", "brain_mri_tumour")
OTHER_NOISE = 10_000  # added to the seeds of the judgement, so that its noise is not that of the choice


@dataclass(frozen=True)
class Erasure:
    """One lesion: its data set and group, and what the validator says."""

    dataset: str
    group: int
    lesion_before: bool  # accepted as a lesion
    lesion_after: bool  # the same after the first candidate
    nothing_before: bool  # nothing is found under the mask
    nothing_after: bool  # the same after the first candidate
    erased: bool  # a candidate was accepted
    tries: int


COLUMNS: dict[str, Callable[[Erasure], bool]] = {
    "lesion before": lambda each: each.lesion_before,
    "lesion after": lambda each: each.lesion_after,
    "nothing before": lambda each: each.nothing_before,
    "nothing after": lambda each: each.nothing_after,
    "erased": lambda each: each.erased,
}


def erase_each(
    data: StudyData, n: int | None, painter: Painter, *, validator: Any = "tiny", margin_mm: float = 3.0, max_tries: int = 3
) -> list[Erasure]:
    """Erase ``n`` validation lesions (all without a number) of each data set, the largest part of each finding.

    Raises:
        StudyInputError: no data set shows a lesion.
    """
    window = (0.0, 255.0)
    judge = LatentValidate(validator, window=window, device="cpu")
    free = NothingFound(judge)
    erasures = []
    for name in data.datasets:
        for i, lesion in enumerate(lesions_of(data.only(name).images())[:n]):
            erasures.append(_erased(name, lesion, painter, judge, free, painter.seed + i, margin_mm, max_tries))
    if not erasures:
        raise StudyInputError(f'this study needs labelled lesions in the "validation" list, and {data.file} shows none ({data.title})')
    return erasures


def _erased(
    dataset: str,
    lesion: MaskedImage,
    painter: Painter,
    judge: LatentValidate,
    free: NothingFound,
    seed: int,
    margin_mm: float,
    max_tries: int,
) -> Erasure:
    options: dict[str, Any] = {"margin_mm": margin_mm, "model": painter.transform(window=(0.0, 255.0))}
    prompt = lesion.prompt_for(NORMAL)
    retrying = EraseLesion(prompt, validator=judge, max_tries=max_tries, **options)
    region = retrying.region(lesion.mask)
    first = EraseLesion(prompt, validator=None, **options).apply(lesion.image, lesion.mask, seed=seed)
    record = retrying.apply(lesion.image, lesion.mask, seed=seed).record
    noise = seed + OTHER_NOISE
    return Erasure(
        dataset,
        lesion.group,
        judge(lesion.image, lesion.mask, seed=noise).accepted,
        judge(first.image, lesion.mask, seed=noise).accepted,
        free(lesion.image, region, seed=noise).accepted,
        free(first.image, region, seed=noise).accepted,
        bool(record["applied"]),
        int(record["tries"]),
    )


def measure(erasures: Sequence[Erasure], *, resamples: int = 2000) -> dict[str, dict[str, Interval]]:
    """Data set -> column -> share with its 95 % interval over the image groups; "all" where there are several data sets."""
    names = list(dict.fromkeys(each.dataset for each in erasures))
    rows = {name: [each for each in erasures if each.dataset == name] for name in names}
    if len(names) > 1:
        rows["all"] = list(erasures)
    return {
        name: {
            column: mean_interval(
                [float(is_so(each)) for each in row], [f"{each.dataset} {each.group}" for each in row], resamples=resamples
            )
            for column, is_so in COLUMNS.items()
        }
        for name, row in rows.items()
    }


def table(figures: dict[str, dict[str, Interval]]) -> str:
    """One line per data set."""
    lines = [f"{'lesions of':<22}{'n':>5}" + "".join(f"{column:>23}" for column in COLUMNS)]
    for name, shares in figures.items():
        count = next(iter(shares.values())).n
        lines.append(f"{name.replace('_', ' '):<22}{count:>5}" + "".join(f"{shares[column]!s:>23}" for column in COLUMNS))
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    painter = Painter.of(options)
    erasures = erase_each(data, options.n, painter, validator=options.validator, margin_mm=options.margin_mm, max_tries=options.max_tries)
    figures = measure(erasures)
    heading = f"{data.title}, validation groups, {painter}, margin {options.margin_mm:g} mm, at most {options.max_tries} tries"
    return f"{heading}\n{table(figures)}", {"shares": figures, "lesions": erasures}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--n", type=int, metavar="N", help="lesions per data set; default all")
    parser.add_argument("--margin-mm", type=float, default=3.0, metavar="MM", help="default %(default)s (pixels without an affine)")
    parser.add_argument("--max-tries", type=int, default=3, metavar="N", help="largest number of candidates, default %(default)s")
    parser.add_argument("--validator", default="tiny", metavar="SOURCE", help="source of the validator; default tiny, the embedded one")
    return run_study(parser, _study, arguments, needs="labelled lesions", preferred=DATASETS)
