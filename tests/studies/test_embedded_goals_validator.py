from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.validator import ValidatorModel
from monai_diffaug.studies import embedded_goals
from monai_diffaug.studies.embedded_goals import false_alarm_rate, lesion_dice
from monai_diffaug.studies.study_images import StudyData


class Answer(ValidatorModel):
    """Answers with the same mask for every crop, and keeps the crops."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self.crops: list[torch.Tensor] = []

    def predict(self, images, generators):
        self.crops.append(images)
        return self.mask.expand(len(images), 1, -1, -1)


def answering(monkeypatch: pytest.MonkeyPatch, mask: torch.Tensor) -> Answer:
    answer = Answer(mask)
    monkeypatch.setattr(embedded_goals, "shared_model", lambda *arguments: answer)
    return answer


def test_crops_are_centred_on_lesions_and_an_answer_on_the_middle_meets_them(packed, monkeypatch) -> None:
    data = StudyData.open(packed("spleen_ct"))
    middle, corner = torch.zeros(1, 128, 128), torch.zeros(1, 128, 128)
    middle[:, 44:84, 44:84] = 1  # the lesion fills half of the square
    corner[:, :20, :20] = 1
    answer = answering(monkeypatch, middle)
    assert lesion_dice(data)["spleen_ct"] > 0.4
    assert [crops.shape for crops in answer.crops] == [(4, 3, 128, 128)] and -1 <= float(answer.crops[0].min()) < float(
        answer.crops[0].max()
    ) <= 1
    answering(monkeypatch, corner)
    assert lesion_dice(data)["spleen_ct"] < 0.05


def test_specks_are_no_false_alarms_and_larger_regions_are(breast, monkeypatch) -> None:
    mask = torch.zeros(1, 128, 128)
    mask[:, :18, :18] = 1  # just below 2 % of the crop
    answering(monkeypatch, mask)
    assert false_alarm_rate(breast, n=4) == 0
    mask[:, :19, :19] = 1
    assert false_alarm_rate(breast, n=4) == 1


def test_the_crops_of_tissue_repeat_with_the_seed(breast, monkeypatch) -> None:
    answer = answering(monkeypatch, torch.zeros(1, 128, 128))
    for seed in (0, 0, 1):
        false_alarm_rate(breast, n=3, seed=seed)
    first, again, other = answer.crops
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.min()) >= -1 and float(first.max()) <= 1
