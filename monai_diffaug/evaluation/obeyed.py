"""Are prompts obeyed? ``python -m monai_diffaug.evaluation.obeyed``.

Normal tissue of validation images (breast ultrasound) is repainted three times, with the same outline and the same noise: as a benign
mass, as a malignant mass, as normal tissue. A ResNet18 trained on real crops of the training split says what it sees, the validator
whether it finds a lesion. The same verdicts on real validation lesions and real normal tissue stand below: no generator can be expected
to be told apart better than those. The outlines are those of benign and malignant lesions alike, whatever the prompt: a real malignant
mass may be known by its outline, a painted one only by its look.

The classifier takes two minutes on one core; with ``--out`` it is kept and used again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.evaluation.bootstrap import Interval, interval
from monai_diffaug.evaluation.finding_classifier import CLASSES, ClassifierSettings, load_or_train, predict
from monai_diffaug.evaluation.regions import Region, crop_of, free_places, real_lesions
from monai_diffaug.evaluation.report import study_parser, write_json
from monai_diffaug.prompts import NORMAL
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["PAINTED", "REAL", "Row", "Verdict", "judge", "paint", "real_regions", "rows_of"]

SOURCE = "breast_ultrasound"
PROMPT = "ultrasound of breast, {finding}"
PAINTED, REAL = "painted", "real"
FOUND_DICE = 0.7


@dataclass(frozen=True)
class Verdict:
    """What was asked for (or is really there), and what the two judges say.

    Attributes:
        kind: "painted" or "real".
        asked: the finding of the prompt, or of the real crop.
        group: of the image.
        said: the classifier's finding.
        dice: of the validator's prediction with the mask.
    """

    kind: str
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
    chosen = [region for finding in CLASSES[:-1] for region in [r for r in lesions if r.finding == finding][:n]]
    return chosen + free_places(n, seed=seed + 1, source=SOURCE)


def judge(
    classifier: Any, size_px: int, regions: Sequence[Region], images: Sequence[Tensor], asked: Sequence[str], *, kind: str, seed: int = 0
) -> list[Verdict]:
    """Verdicts of both judges on images at the regions' masks."""
    validate = LatentValidate(min_dice=FOUND_DICE, device="cpu")
    crops = [crop_of(region, size_px, image=image).mean(0, keepdim=True) for region, image in zip(regions, images, strict=True)]
    said = predict(classifier, torch.stack(crops)).argmax(1).tolist()
    return [
        Verdict(kind, wanted, region.group, CLASSES[index], validate(image, region.mask, seed=seed + i).score)
        for i, (region, image, wanted, index) in enumerate(zip(regions, images, asked, said, strict=True))
    ]


def rows_of(verdicts: Sequence[Verdict]) -> list[Row]:
    """One row for each kind and finding."""
    rows = []
    for kind in (PAINTED, REAL):
        for asked in CLASSES:
            own = [v for v in verdicts if v.kind == kind and v.asked == asked]
            if not own:
                continue
            groups = [v.group for v in own]
            right, found = np.array([v.said == asked for v in own]), np.array([v.found for v in own])
            rows.append(
                Row(
                    kind,
                    asked,
                    len(own),
                    len(set(groups)),
                    {name: sum(v.said == name for v in own) for name in CLASSES},
                    interval(lambda picks, right=right: float(right[picks].mean()), groups),  # type: ignore[misc]
                    interval(lambda picks, found=found: float(found[picks].mean()), groups),  # type: ignore[misc]
                )
            )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The confusion table of painted and real crops, and what the validator finds."""
    said = "".join(f"{name.split()[0]:>11}" for name in CLASSES)
    lines = [f"{'':<9}{'asked for':<16}{'n':>4}{'images':>8} |{said} | {'says what was asked':<24}{'validator finds a lesion':<22}"]
    for row in rows:
        counts = "".join(f"{row.said[name]:>11}" for name in CLASSES)
        lines.append(f"{row.kind:<9}{row.asked:<16}{row.n:>4}{row.images:>8} |{counts} | {row.as_asked!s:<24}{row.found!s:<22}")
    for kind in (PAINTED, REAL):
        own = [row for row in rows if row.kind == kind]
        total = sum(row.n for row in own)
        lesions = [row for row in own if row.asked != NORMAL]
        right = sum(row.said[row.asked] for row in own)
        lesion = sum(row.n - row.said[NORMAL] for row in lesions) + sum(row.said[NORMAL] for row in own if row.asked == NORMAL)
        which = sum(row.said[row.asked] for row in lesions)
        named = sum(row.n - row.said[NORMAL] for row in lesions)
        kinds = f"benign or malignant {which}/{named} of the lesions it sees" if named else "it sees no lesion"
        lines.append(f"{kind}: one of three {right}/{total}, lesion or none {lesion}/{total}, {kinds}")
    return "\n".join(lines)


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--n", type=int, default=24, help="places, each painted with three prompts; and real crops of each class")
    parser.add_argument("--classifier-steps", type=int, default=ClassifierSettings.steps, help="the classifier is kept beside --out")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    settings = ClassifierSettings(args.classifier_steps)
    classifier = load_or_train(settings, None if args.out is None else args.out.with_suffix(".classifier.safetensors"))
    places = free_places(args.n, seed=args.seed, source=SOURCE)
    verdicts: list[Verdict] = []
    for finding in CLASSES:
        images = paint(
            places, finding, model=args.model, seed=args.seed, num_inference_steps=args.steps, guidance_scale=args.guidance_scale
        )
        verdicts += judge(classifier, settings.size_px, places, images, [finding] * len(places), kind=PAINTED, seed=args.seed)
    real = real_regions(args.n, args.seed)
    verdicts += judge(classifier, settings.size_px, real, [r.image for r in real], [r.finding for r in real], kind=REAL, seed=args.seed)
    rows = rows_of(verdicts)
    sys.stdout.write(
        f"breast ultrasound, validation groups, seed {args.seed}, {args.steps} steps, guidance {args.guidance_scale:g}; classifier: "
        f"ResNet18, {settings.size_px} px, {settings.steps} steps on real training crops\n{table(rows)}\n"
    )
    plain = {"settings": {**vars(args), "out": str(args.out)}, "rows": [asdict(r) for r in rows], "verdicts": [asdict(v) for v in verdicts]}
    write_json(plain, args.out)


if __name__ == "__main__":
    main()
