"""Are prompts obeyed? ``python -m monai_diffaug.studies.prompt_obedience``.

Normal tissue of validation images (breast ultrasound) is repainted as a benign mass, as a malignant mass and as normal tissue, with the
same noise, under outlines of benign and under outlines of malignant lesions. A ResNet18 trained on real crops of the training split says
what it sees, the validator whether it finds a lesion.

Two yardsticks stand below. The same verdicts on real crops: these show the tissue around a lesion too, which may tell its kind. And real
validation lesions pasted into the same normal images: pixels that are beyond doubt, but only inside a mask, as painted ones are. No
generator that paints inside a mask can be expected to be told apart better than those.

The classifier takes two minutes on one core; with ``--out`` it is kept and used again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.bootstrap import Interval, interval
from monai_diffaug.studies.copies import copies
from monai_diffaug.studies.finding_classifier import CLASSES, ClassifierSettings, load_or_train, predict
from monai_diffaug.studies.regions import Region, crop_of, free_places, real_lesions
from monai_diffaug.studies.report import study_parser, write_json
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["PAINTED", "PASTED", "REAL", "Row", "Verdict", "effect", "judge", "paint", "pasted_lesions", "real_regions", "rows_of", "table"]

SOURCE = "breast_ultrasound"
PROMPT = "ultrasound of breast, {finding}"
LESIONS = BENIGN, MALIGNANT = CLASSES[:2]
PAINTED, PASTED, REAL = "painted", "pasted", "real"
FOUND_DICE = 0.7


@dataclass(frozen=True)
class Verdict:
    """What was asked for (or is really there), and what the two judges say.

    Attributes:
        kind: "painted", "pasted" or "real".
        outline: the finding whose outline was taken.
        asked: the finding of the prompt, or of the real lesion.
        group: of the image.
        said: the classifier's finding.
        dice: of the validator's prediction with the mask.
    """

    kind: str
    outline: str
    asked: str
    group: int
    said: str
    dice: float

    @property
    def found(self) -> bool:
        """The validator finds a lesion there."""
        return self.dice >= FOUND_DICE


@dataclass(frozen=True)
class Row:
    """One line of the table: counts of what the classifier said, and shares with 95 % intervals over the images."""

    kind: str
    outline: str
    asked: str
    n: int
    images: int
    said: dict[str, int]
    as_asked: Interval
    found: Interval


def paint(
    places: Sequence[Region],
    finding: str,
    *,
    model: Any = "tiny",
    seed: int = 0,
    num_inference_steps: int = 12,
    guidance_scale: float = 3.0,
) -> list[Tensor]:
    """Each place repainted with the prompt of a finding: images (C, H, W) uint8. The noise depends on seed and place alone."""
    inpaint = DiffusionLocalInpaint(model, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, device="cpu")
    edits = inpaint.apply_batch(
        [place.image for place in places],
        [place.mask for place in places],
        [PROMPT.format(finding=finding)] * len(places),
        seeds=[seed + i for i in range(len(places))],
    )
    return [torch.as_tensor(edit.image) for edit in edits]


def real_regions(n: int, seed: int = 0) -> list[Region]:
    """Up to ``n`` real validation crops of each class."""
    lesions = real_lesions(seed=seed, source=SOURCE)
    chosen = [region for finding in LESIONS for region in [r for r in lesions if r.finding == finding][:n]]
    return chosen + free_places(n, seed=seed + 1, source=SOURCE)


def pasted_lesions(real: Sequence[Region], places: Sequence[Region], seed: int = 0) -> list[Region]:
    """The lesions among real regions, their pixels pasted with a soft edge into the images of places."""
    return copies([r for r in real if r.finding != NORMAL], [place.image for place in places], "exact", seed=seed)


def judge(
    classifier: Any,
    size_px: int,
    regions: Sequence[Region],
    images: Sequence[Tensor],
    asked: Sequence[str],
    *,
    kind: str,
    outlines: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Verdict]:
    """Verdicts of both judges on images at the regions' masks; ``outlines`` are the findings of the masks, default what was asked."""
    validate = LatentValidate(min_dice=FOUND_DICE, device="cpu")
    crops = [crop_of(region, size_px, image=image).mean(0, keepdim=True) for region, image in zip(regions, images, strict=True)]
    said = predict(classifier, torch.stack(crops)).argmax(1).tolist()
    return [
        Verdict(kind, outline, wanted, region.group, CLASSES[index], validate(image, region.mask, seed=seed + i).score)
        for i, (region, image, outline, wanted, index) in enumerate(
            zip(regions, images, asked if outlines is None else outlines, asked, said, strict=True)
        )
    ]


def rows_of(verdicts: Sequence[Verdict]) -> list[Row]:
    """One row for each kind, outline and finding, in the order in which they first come."""
    rows = []
    for key in dict.fromkeys((v.kind, v.outline, v.asked) for v in verdicts):
        own = [v for v in verdicts if (v.kind, v.outline, v.asked) == key]
        groups = [v.group for v in own]
        said = {name: sum(v.said == name for v in own) for name in CLASSES}
        as_asked, found = _share(own, lambda v: v.said == v.asked), _share(own, lambda v: v.found)
        rows.append(Row(*key, len(own), len(set(groups)), said, as_asked, found))
    return rows


def _share(verdicts: Sequence[Verdict], is_so: Callable[[Verdict], bool]) -> Interval:
    so = np.array([is_so(v) for v in verdicts], dtype=float)
    return interval(lambda picks: float(so[picks].mean()), [v.group for v in verdicts])


def effect(verdicts: Sequence[Verdict], of: str) -> Interval:
    """What the prompt, or the outline, does on its own: how much more often painted lesions are called malignant.

    Args:
        verdicts: of the same places in the same order for each combination of outline and prompt.
        of: "asked" compares the prompts place by place; "outline" compares the outlines, whose places differ.

    Raises:
        ValueError: ``of`` is none of the two.
    """
    if of not in ("asked", "outline"):
        raise ValueError(f"of must be 'asked' or 'outline', got {of!r}")
    painted = [v for v in verdicts if v.kind == PAINTED and v.asked in LESIONS]
    benign, malignant = ([v for v in painted if getattr(v, of) == finding] for finding in LESIONS)
    called = np.array([v.said == MALIGNANT for v in malignant + benign], dtype=float)
    sign = np.repeat([1.0, -1.0], [len(malignant), len(benign)])

    def difference(picks: NDArray[np.int64]) -> float:
        chosen, signs = called[picks], sign[picks]
        if not (signs > 0).any() or not (signs < 0).any():
            return float("nan")
        return float(chosen[signs > 0].mean() - chosen[signs < 0].mean())

    return interval(difference, [v.group for v in malignant + benign])


def table(rows: Sequence[Row]) -> str:
    """The confusion table, what the validator finds, and one line a kind: how often benign and malignant are told apart."""
    said = "".join(f"{name.split()[0]:>11}" for name in CLASSES)
    head = f"{'':<9}{'outline of':<16}{'asked for':<16}{'n':>4}{'images':>8}"
    lines = [f"{head} |{said} | {'says what was asked':<24}validator finds a lesion"]
    for row in rows:
        counts = "".join(f"{row.said[name]:>11}" for name in CLASSES)
        place = f"{row.kind:<9}{row.outline:<16}{row.asked:<16}{row.n:>4}{row.images:>8}"
        lines.append(f"{place} |{counts} | {row.as_asked!s:<24}{row.found!s:<22}")
    for kind in (PAINTED, PASTED, REAL):
        own = [row for row in rows if row.kind == kind and row.asked in LESIONS and row.outline == row.asked]
        total, right = sum(row.n for row in own), sum(row.said[row.asked] for row in own)
        seen = sum(row.n - row.said[NORMAL] for row in own)
        lines.append(f"{kind}, outline as asked: a lesion {seen}/{total}, the one that was asked for {right}/{total}")
    return "\n".join(lines)


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--n", type=int, default=36, help="places a kind of outline, each painted with three prompts; real crops a class")
    parser.add_argument("--classifier-steps", type=int, default=ClassifierSettings.steps, help="the classifier is kept beside --out")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    settings = ClassifierSettings(args.classifier_steps)
    classifier = load_or_train(settings, None if args.out is None else args.out.with_suffix(".classifier.safetensors"))
    verdicts: list[Verdict] = []
    places_of = {outline: free_places(args.n, seed=args.seed, source=SOURCE, outlines_of=outline) for outline in LESIONS}
    for outline, places in places_of.items():
        for finding in CLASSES:
            images = paint(
                places, finding, model=args.model, seed=args.seed, num_inference_steps=args.steps, guidance_scale=args.guidance_scale
            )
            asked, outlines = [finding] * len(places), [outline] * len(places)
            verdicts += judge(classifier, settings.size_px, places, images, asked, kind=PAINTED, outlines=outlines, seed=args.seed)
    real = real_regions(args.n, args.seed)
    for kind, regions in ((PASTED, pasted_lesions(real, places_of[MALIGNANT], args.seed)), (REAL, real)):
        images, asked = [r.image for r in regions], [r.finding for r in regions]
        verdicts += judge(classifier, settings.size_px, regions, images, asked, kind=kind, seed=args.seed)
    rows = rows_of(verdicts)
    sys.stdout.write(
        f"breast ultrasound, validation groups, seed {args.seed}, {args.steps} steps, guidance {args.guidance_scale:g}; classifier: "
        f"ResNet18, {settings.size_px} px, {settings.steps} steps on real training crops\n{table(rows)}\n"
    )
    effects = {name: effect(verdicts, name) for name in ("asked", "outline")}
    sys.stdout.write(f"called malignant more often, by the prompt {effects['asked']}, by the outline {effects['outline']}\n")
    plain = {
        "settings": {**vars(args), "out": str(args.out)},
        "rows": [asdict(row) for row in rows],
        "effects": {name: asdict(value) for name, value in effects.items()},
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    write_json(plain, args.out)


if __name__ == "__main__":
    main()
