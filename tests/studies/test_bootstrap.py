from __future__ import annotations

import numpy as np
import pytest

from monai_diffaug.studies.bootstrap import interval, mean_interval


def test_the_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.RandomState(0).normal(3, 2, 400)
    result = mean_interval(values, np.arange(400))
    half = 1.96 * values.std() / 20
    assert result.value == pytest.approx(values.mean())
    assert result.low == pytest.approx(values.mean() - half, abs=0.04) and result.high == pytest.approx(values.mean() + half, abs=0.04)


def test_copies_of_an_image_are_no_further_evidence():
    values = np.random.RandomState(0).normal(0, 1, 30)
    alone = mean_interval(values, np.arange(30))
    copied = np.repeat(values, 10)
    grouped = mean_interval(copied, np.repeat(np.arange(30), 10))
    ungrouped = mean_interval(copied, np.arange(300))
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.01)
    assert ungrouped.high - ungrouped.low < 0.5 * (grouped.high - grouped.low)


def test_undefined_resamples_are_left_out_and_nothing_is_refused():
    targets = np.array([0, 0, 0, 1])
    result = interval(lambda p: 1.0 if targets[p].any() else float("nan"), np.arange(4))
    assert (result.value, result.low, result.high) == (1, 1, 1)
    with pytest.raises(ValueError, match="n >= 1"):
        interval(lambda p: 0.0, [])
