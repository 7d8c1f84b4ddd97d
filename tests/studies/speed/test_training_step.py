"""The training step with and without augmentation."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.studies.speed.timed_edits import Amount
from monai_diffaug.studies.speed.training_step import measure_training_step


@pytest.mark.slow
def test_a_batch_that_is_used_ten_times_takes_less_time_per_step_than_one_used_once() -> None:
    once, often = measure_training_step(torch.device("cpu"), Amount(rounds=5, steps=2))  # medians of rounds on a busy machine
    assert (once["repeats"], often["repeats"]) == (1, 10)
    assert once["overhead"][0] > 2 * often["overhead"][0] > 0
    assert once["seconds_per_step"]["with"][0] > once["seconds_per_step"]["without"][0]
