from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monai_diffaug.studies.finding_classifier import ClassifierSettings
from monai_diffaug.studies.masked_images import free_places, real_lesions
from monai_diffaug.studies.prompt_obedience import PAINTED, REAL, Verdict, effect, judge, pasted_lesions, rows_of, table

FINDINGS = BENIGN, MALIGNANT = "benign mass", "malignant mass"
NORMAL = "normal tissue"
CLASSES = (*FINDINGS, NORMAL)


def painted(outline: str, target: str, predictions: list[str], dice: float = 0.9) -> list[Verdict]:
    return [Verdict(PAINTED, outline, target, group, name, dice) for group, name in enumerate(predictions)]


def test_counts_and_shares_of_known_verdicts():
    verdicts = painted(BENIGN, BENIGN, [BENIGN] * 3 + [MALIGNANT]) + painted(MALIGNANT, BENIGN, [MALIGNANT] * 4)
    verdicts += painted(BENIGN, NORMAL, [NORMAL] * 4, dice=0.1)
    verdicts += [Verdict(REAL, MALIGNANT, MALIGNANT, 0, MALIGNANT, 0.8)]
    rows = rows_of(verdicts, CLASSES)
    assert [(row.kind, row.outline, row.target, row.n, row.images) for row in rows] == [
        (PAINTED, BENIGN, BENIGN, 4, 4),
        (PAINTED, MALIGNANT, BENIGN, 4, 4),
        (PAINTED, BENIGN, NORMAL, 4, 4),
        (REAL, MALIGNANT, MALIGNANT, 1, 1),
    ]
    assert rows[0].predicted == {BENIGN: 3, MALIGNANT: 1, NORMAL: 0} and rows[0].as_target.value == 0.75
    assert [row.detected.value for row in rows] == [1, 1, 0, 1] and rows[2].as_target.value == 1
    printed = table(rows)
    assert "painted, outline as prompted: a lesion 4/4, the prompted one 3/4" in printed
    assert "real, outline as prompted: a lesion 1/1, the prompted one 1/1" in printed


def test_prompt_and_outline_have_separate_effects():
    pairs = [(outline, target) for outline in FINDINGS for target in FINDINGS]
    by_prompt = [v for outline, target in pairs for v in painted(outline, target, [target] * 3)]
    assert effect(by_prompt, "target", FINDINGS).value == 1 and effect(by_prompt, "outline", FINDINGS).value == 0
    by_outline = [v for outline, target in pairs for v in painted(outline, target, [outline, outline, NORMAL])]
    assert effect(by_outline, "target", FINDINGS).value == 0 and effect(by_outline, "outline", FINDINGS).value == pytest.approx(2 / 3)
    uncounted = [*painted(BENIGN, NORMAL, [MALIGNANT] * 3), Verdict(REAL, BENIGN, BENIGN, 0, MALIGNANT, 0.9)]
    assert effect(by_prompt + uncounted, "target", FINDINGS).value == 1
    with pytest.raises(ValueError, match="'target' or 'outline', got 'size'"):
        effect(by_prompt, "size", FINDINGS)


def test_pasted_lesions_are_real_pixels_in_normal_images(breast):
    places, real = free_places(breast, 2), real_lesions(breast, 2) + free_places(breast, 1)
    pasted = pasted_lesions(real, places)
    assert [one.finding for one in pasted] == [one.finding for one in real[:2]]
    for lesion, copy in zip(real, pasted, strict=False):
        inside = torch.nn.functional.max_pool2d(1 - copy.mask[None].float(), 9, 1, 4)[0] == 0
        assert inside.any() and torch.allclose(copy.image[inside].float(), lesion.image.float().mean(0, keepdim=True)[inside], atol=1)
        assert (copy.image - lesion.image.float().mean(0))[copy.mask == 0].abs().mean() > 5


def test_both_judges_see_the_edit(breast):
    places = free_places(breast, 2)

    def dark_is_benign(crops):
        dark = (crops.mean((1, 2, 3)) < -0.5).float()
        return torch.stack([dark, torch.zeros_like(dark), 1 - dark], 1) * 9

    black = [replace(one, image=torch.where(one.mask > 0, 0, one.image // 8).to(torch.uint8)) for one in places]
    white = [replace(one, image=torch.full_like(one.image, 250)) for one in places]
    for images, prediction in ((black, BENIGN), (white, NORMAL)):
        verdicts = judge(dark_is_benign, ClassifierSettings(FINDINGS, size_px=32), images, [BENIGN] * 2, kind=PAINTED)
        assert [v.predicted for v in verdicts] == [prediction] * 2
    assert all(verdict.dice == 0 for verdict in verdicts)
