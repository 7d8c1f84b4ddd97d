from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.validator import ValidatorModel
from monai_diffaug.studies import validator_dice
from monai_diffaug.studies.study_images import StudyData
from monai_diffaug.studies.validator_dice import false_alarm_rate, lesion_crops, lesion_dice, tissue_crops


class Answer(ValidatorModel):
    """Answers with the same mask for every crop."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def predict(self, images, generators):
        return self.mask.expand(len(images), 1, -1, -1)


def answering(monkeypatch: pytest.MonkeyPatch, mask: torch.Tensor) -> None:
    monkeypatch.setattr(validator_dice, "shared_model", lambda *arguments: Answer(mask))


def test_crops_are_centred_on_lesions_and_the_dice_is_that_of_the_masks(packed, monkeypatch) -> None:
    data = StudyData.open(packed("spleen_ct"))
    images, masks = lesion_crops(data, "validation")
    assert len(images) == 4 and float(images.min()) >= -1 and float(images.max()) <= 1
    ys, xs = torch.nonzero(masks[0, 0], as_tuple=True)
    assert abs(float(ys.min() + ys.max()) / 2 - 63.5) < 2 and abs(float(xs.min() + xs.max()) / 2 - 63.5) < 2
    answering(monkeypatch, masks[:1].float())
    expected = (2 * (masks & masks[:1]).sum((1, 2, 3)) / (masks.sum((1, 2, 3)) + masks[:1].sum())).mean()
    assert lesion_dice(data) == {"spleen_ct": pytest.approx(float(expected))} and float(expected) < 1


def test_specks_are_no_false_alarms_and_larger_regions_are(breast, monkeypatch) -> None:
    mask = torch.zeros(1, 128, 128)
    mask[:, :18, :18] = 1  # just below 2 % of the crop
    answering(monkeypatch, mask)
    assert false_alarm_rate(breast, n=4) == 0
    mask[:, :19, :19] = 1
    assert false_alarm_rate(breast, n=4) == 1


def test_crops_of_tissue_repeat_with_the_seed(breast) -> None:
    first, again, other = (tissue_crops(breast, "validation", 3, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (3, 3, 128, 128) and torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.min()) >= -1 and float(first.max()) <= 1
