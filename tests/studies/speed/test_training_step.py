"""The training step with and without augmentation."""

from __future__ import annotations

import torch

from monai_diffaug.studies.speed.speed_settings import Amount
from monai_diffaug.studies.speed.training_step import measure_training_step


def test_a_batch_that_is_used_ten_times_costs_less_a_step_than_one_used_once() -> None:
    once, often = measure_training_step(torch.device("cpu"), Amount(rounds=5, steps=2))  # medians: a busy machine lengthens single rounds
    assert (once["repeats"], often["repeats"]) == (1, 10)
    assert once["overhead"][0] > 2 * often["overhead"][0] > 0
    assert once["seconds_a_step"]["with"][0] > once["seconds_a_step"]["without"][0]
