"""Are prompts obeyed? Judged by the validator and by a classifier of real crops.

Normal tissue of validation images is repainted as each of two findings and as normal tissue, with the same noise, under outlines of both
findings (breast ultrasound: benign and malignant masses). A ResNet18 trained on real crops of the training list classifies the result, and
the validator says whether it detects a lesion.

Two references follow. The same verdicts on real crops: these show the tissue around a lesion too, which may tell its kind. And real
validation lesions pasted into the same normal images: real pixels, but only inside a mask, as painted ones are. No generator that paints
inside a mask can be expected to be told apart better than those.

The classifier takes two minutes on one core; with ``--out`` it is kept and used again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.bootstrap import Interval, interval, mean_interval
from monai_diffaug.studies.copies import copies
from monai_diffaug.studies.finding_classifier import ClassifierSettings, load_or_train, predict
from monai_diffaug.studies.masked_images import MaskedImage, crop_of, free_places, real_lesions
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData, StudyInputError
from monai_diffaug.transforms.latent_validate import LatentValidate

__all__ = ["PAINTED", "PASTED", "REAL", "Row", "Verdict", "effect", "judge", "pasted_lesions", "real_crops", "rows_of", "table"]

PAINTED, PASTED, REAL = "painted", "pasted", "real"
MIN_DICE = 0.7


@dataclass(frozen=True)
class Verdict:
    """Verdicts of both judges on one image."""

    kind: str  # "painted", "pasted" or "real"
    outline: str  # the finding whose outline the mask is
    target: str  # the finding of the prompt, or of the real lesion
    group: int
    predicted: str  # the classifier's finding
    dice: float  # of the validator's prediction with the mask

    @property
    def is_detected(self) -> bool:
        """The validator finds a lesion there."""
        return self.dice >= MIN_DICE


@dataclass(frozen=True)
class Row:
    """One line of the table: counts of the classifier's findings, and shares with 95 % intervals over the images."""

    kind: str
    outline: str
    target: str
    n: int
    images: int
    predicted: dict[str, int]
    as_target: Interval
    detected: Interval


def real_crops(data: StudyData, findings: Sequence[str], n: int, seed: int = 0) -> list[MaskedImage]:
    """Up to ``n`` real validation lesions of each finding, and ``n`` free places."""
    lesions = real_lesions(data, seed=seed)
    chosen = [one for finding in findings for one in [lesion for lesion in lesions if lesion.finding == finding][:n]]
    return chosen + free_places(data, n, seed=seed + 1)


def pasted_lesions(real: Sequence[MaskedImage], places: Sequence[MaskedImage], seed: int = 0) -> list[MaskedImage]:
    """Paste the pixels of the lesions among the real crops, with a soft edge, into the images of the places."""
    return copies([one for one in real if not one.is_normal], [place.image for place in places], "exact", seed=seed)


def judge(
    classifier: Any,
    settings: ClassifierSettings,
    images: Sequence[MaskedImage],
    targets: Sequence[str],
    *,
    kind: str,
    outlines: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Verdict]:
    """Verdicts of both judges on images at their masks; ``outlines`` are the findings of the masks, by default the targets."""
    validate = LatentValidate(min_dice=MIN_DICE, device="cpu")
    crops = torch.stack([crop_of(one, settings.size_px).mean(0, keepdim=True) for one in images])
    predictions = predict(classifier, crops).argmax(1).tolist()
    columns = zip(images, targets if outlines is None else outlines, targets, predictions, strict=True)
    return [
        Verdict(kind, outline, target, one.group, settings.classes[index], validate(one.image, one.mask, seed=seed + i).score)
        for i, (one, outline, target, index) in enumerate(columns)
    ]


def rows_of(verdicts: Sequence[Verdict], classes: Sequence[str]) -> list[Row]:
    """One row for each kind, outline and target, in the order of their first verdicts."""
    rows = []
    for key in dict.fromkeys((v.kind, v.outline, v.target) for v in verdicts):
        of_row = [v for v in verdicts if (v.kind, v.outline, v.target) == key]
        groups = [v.group for v in of_row]
        counts = {name: sum(v.predicted == name for v in of_row) for name in classes}
        as_target = mean_interval([v.predicted == v.target for v in of_row], groups)
        detected = mean_interval([v.is_detected for v in of_row], groups)
        rows.append(Row(*key, len(of_row), len(set(groups)), counts, as_target, detected))
    return rows


def effect(verdicts: Sequence[Verdict], of: str, findings: Sequence[str]) -> Interval:
    """The effect of the prompt, or of the outline, alone: how much more often painted lesions are classified as the second finding.

    ``verdicts`` are of the same places for each combination of outline and prompt. With ``of="target"`` prompts are compared place by
    place, with "outline" outlines, whose places differ.
    """
    if of not in ("target", "outline"):
        raise ValueError(f"of must be 'target' or 'outline', got {of!r}")
    painted = [v for v in verdicts if v.kind == PAINTED and v.target in findings]
    first, second = ([v for v in painted if getattr(v, of) == finding] for finding in findings)
    is_second = np.array([v.predicted == findings[1] for v in second + first], dtype=float)
    sign = np.repeat([1.0, -1.0], [len(second), len(first)])

    def difference(picks: NDArray[np.int64]) -> float:
        chosen, signs = is_second[picks], sign[picks]
        if not (signs > 0).any() or not (signs < 0).any():
            return float("nan")
        return float(chosen[signs > 0].mean() - chosen[signs < 0].mean())

    return interval(difference, [v.group for v in second + first])


def table(rows: Sequence[Row]) -> str:
    """The confusion table, the validator's detections, and one line per kind: how often the two findings are told apart."""
    classes = list(rows[0].predicted)
    head = f"{'':<9}{'outline of':<16}{'prompt':<16}{'n':>4}{'images':>8}"
    names = "".join(f"{name.split()[0]:>11}" for name in classes)
    lines = [f"{head} |{names} | {'classified as prompted':<24}validator finds a lesion"]
    for row in rows:
        counts = "".join(f"{count:>11}" for count in row.predicted.values())
        place = f"{row.kind:<9}{row.outline:<16}{row.target:<16}{row.n:>4}{row.images:>8}"
        lines.append(f"{place} |{counts} | {row.as_target!s:<24}{row.detected!s:<22}")
    for kind in (PAINTED, PASTED, REAL):
        of_kind = [row for row in rows if row.kind == kind and row.target != NORMAL and row.outline == row.target]
        total, right = sum(row.n for row in of_kind), sum(row.predicted[row.target] for row in of_kind)
        lesions = sum(row.n - row.predicted[NORMAL] for row in of_kind)
        lines.append(f"{kind}, outline as prompted: a lesion {lesions}/{total}, the prompted one {right}/{total}")
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    findings = data.require_one().finding_words[:2]
    if len(findings) < 2:
        raise StudyInputError(f"this study needs two findings to tell apart, and {data.file} has {len(findings)} ({data.title})")
    settings, painter, n, seed = ClassifierSettings(findings, options.classifier_steps), Painter.of(options), options.n, options.seed
    places_of = {outline: free_places(data, n, seed=seed, outlines_of=outline) for outline in findings}
    real = real_crops(data, findings, n, seed)
    classifier = load_or_train(data, settings, None if options.out is None else options.out.with_suffix(".classifier.safetensors"))
    verdicts: list[Verdict] = []
    for outline, places in places_of.items():
        for finding in settings.classes:
            painted = painter.paint(places, [place.prompt_for(finding) for place in places])
            targets, outlines = [finding] * n, [outline] * n
            verdicts += judge(classifier, settings, painted, targets, kind=PAINTED, outlines=outlines, seed=seed)
    for kind, images in ((PASTED, pasted_lesions(real, places_of[findings[1]], seed)), (REAL, real)):
        verdicts += judge(classifier, settings, images, [one.finding for one in images], kind=kind, seed=seed)
    rows = rows_of(verdicts, settings.classes)
    effects = {name: effect(verdicts, name, findings) for name in ("target", "outline")}
    text = (
        f"{data.title}, validation groups, {painter}; classifier: "
        f"ResNet18, {settings.size_px} px, {settings.steps} steps on real training crops\n{table(rows)}\n"
        f"classified as {findings[1]} more often, by the prompt {effects['target']}, by the outline {effects['outline']}"
    )
    return text, {"rows": rows, "effects": effects, "verdicts": verdicts}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--n", type=int, default=36, help="places per outline, each painted with three prompts; real crops per class")
    parser.add_argument("--classifier-steps", type=int, default=ClassifierSettings.steps, help="the classifier is kept next to --out")
    needs = "lesions of two findings and normal images"
    return run_study(parser, _study, arguments, needs=needs, preferred=("breast_ultrasound",))
