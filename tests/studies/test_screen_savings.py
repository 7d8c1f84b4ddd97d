"""Counts, savings and places of the study of the latent screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.edit.validation_options import Screen
from monai_diffaug.studies import screen_savings as study
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.screen_savings import ScreenedCandidate, auc, rows_of, threshold_that_keeps
from monai_diffaug.studies.study_images import StudyData

SECONDS = {"sampling": 1.0, "screening": 0.1, "decoding": 0.2, "validating": 0.3}


def judged(*pairs: tuple[float, bool]) -> list[ScreenedCandidate]:
    return [ScreenedCandidate("breast_ultrasound", i, dice, 1 - dice, accepted, 0.5, SECONDS) for i, (dice, accepted) in enumerate(pairs)]


def test_the_area_under_the_curve_is_the_chance_of_the_right_order() -> None:
    assert auc(judged((0.9, True), (0.8, True), (0.3, False))) == 1
    assert auc(judged((0.9, False), (0.3, True))) == 0
    assert auc(judged((0.5, True), (0.5, False))) == 0.5
    assert auc(judged((0.9, True), (0.4, True), (0.6, False), (0.2, False))) == 0.75
    assert np.isnan(auc(judged((0.9, True))))
    mixed = judged((0.9, True), (0.3, False))
    assert auc(mixed, [one.dice_at_end for one in mixed]) == 0


def test_a_least_dice_keeps_the_accepted_above_it_and_catches_the_rejected_below() -> None:
    sample = judged((0.9, True), (0.7, True), (0.5, True), (0.3, True), (0.6, False), (0.1, False))
    low, middle, high = rows_of(sample, (0.3, 0.55, 0.95))
    assert (low.kept.value, low.caught.value) == (1, 0.5)
    assert (middle.kept.value, middle.caught.value) == (0.5, 0.5)
    assert (high.kept.value, high.caught.value) == (0, 1)


def test_the_threshold_is_the_highest_that_keeps_enough() -> None:
    sample = judged(*[(0.5 + 0.02 * i, True) for i in range(20)], (0.95, False))
    assert threshold_that_keeps(sample) == 0.5 and threshold_that_keeps(sample, kept=0.5) == 0.7
    assert threshold_that_keeps(judged((0.9, False))) == 0


def test_what_is_painted_has_a_place_and_the_words_of_its_data_set(packed: Callable[..., Path]) -> None:
    for name, word in (("breast_ultrasound", "mass"), ("colonoscopy_polyp", "endoscopy of colon, polyp")):
        places = study.places_of(StudyData.open(packed(name)), 2, 0)
        assert len(places) == 2 and all(word in prompt and bool(region.mask.any()) for region, prompt in places)


def test_a_screen_that_passes_everything_gives_the_same_images_and_one_that_passes_nothing_none(
    breast: StudyData, random_inpainter: str
) -> None:
    def everything(latents: Tensor) -> Tensor:
        return torch.full_like(latents[:, :1], 9.0)

    places = study.places_of(breast, 2, 0)
    painter, validator = Painter(random_inpainter, num_inference_steps=1), lambda images: torch.ones_like(images[:, :1])
    (plain, *screened), same = study.saving(places, painter, Screen(everything, 0.0), validator=validator)
    assert same == 2 and plain.cpu_seconds > 0 and plain.screened == 0
    assert all((arm.accepted, arm.candidates, arm.screened) == (plain.accepted, plain.candidates, 0) for arm in screened)
    (_, *refusing), _ = study.saving(places, painter, Screen(lambda z: -everything(z), 0.1), validator=validator)
    assert all(arm.accepted == 0 and arm.screened == arm.candidates == 6 for arm in refusing)
