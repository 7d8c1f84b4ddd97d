from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from monai_diffaug.studies.acceptance import BAD_MASKS, EMPTY, RIGHT, Judgement, judge, measure, table
from monai_diffaug.studies.masked_images import real_lesions


def judged(kind: str, accepted: int, n: int) -> list[Judgement]:
    return [Judgement(kind, group, group < accepted, 0.5) for group in range(n)]


def test_precision_and_recall_of_known_verdicts():
    figures = measure(judged(RIGHT, 8, 10) + judged(EMPTY, 0, 10) + judged("elsewhere in the image", 4, 10), resamples=200)
    assert figures.recall.value == 0.8 and figures.recall.n == 10
    assert figures.precision.value == pytest.approx(0.8 / (0.8 + 0.2))
    assert figures.precision_against == {EMPTY: 1.0, "elsewhere in the image": pytest.approx(0.8 / 1.2)}
    assert figures.recall.low < 0.8 < figures.recall.high
    assert "8   10" in table(figures) and "recall 0.800" in table(figures)


def test_the_conditions_that_refused_a_lesion_are_counted():
    two, one = "coverage 0.60 < 0.70; false positives 0.12 > 0.05 of the mask", "the validator found nothing"
    right = [Judgement(RIGHT, g, False, 0.5, reason) for g, reason in enumerate((two, two, one))]
    figures = measure(right + judged(EMPTY, 0, 2), resamples=20)
    assert figures.refused_for == {"coverage": 2, "false positives": 2, "the validator found nothing": 1}
    assert "coverage 2, false positives 2" in table(figures)


def test_kinds_of_different_number_weigh_alike():
    few = measure(judged(RIGHT, 10, 10) + judged(EMPTY, 0, 50) + judged("half the area", 2, 2), resamples=50)
    assert few.precision.value == pytest.approx(1 / 1.5)


def test_verdicts_without_wrong_samples_are_refused():
    with pytest.raises(ValueError, match="right and wrong"):
        measure(judged(RIGHT, 1, 2))


def test_a_rule_that_knows_the_lesions_is_right_about_every_kind(breast):
    truth = {lesion.image.numpy().tobytes(): lesion.mask > 0 for lesion in real_lesions(breast)}

    def oracle(image, mask, *, seed):
        lesion = truth.get(image.numpy().tobytes(), torch.zeros_like(mask, dtype=torch.bool))
        dice = 2 * float((lesion & (mask > 0)).sum()) / float(lesion.sum() + mask.sum())
        return SimpleNamespace(accepted=dice >= 0.77, score=dice, reason="")

    figures = measure(judge(breast, 6, rule=oracle), resamples=50)
    assert set(figures.accepted) == {RIGHT, EMPTY, *BAD_MASKS}
    assert figures.recall.value == 1 and figures.precision.value == 1 and figures.dice[RIGHT] == 1
