"""Medians, intervals and the order of the rounds."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.studies.speed.timing import interleaved, median_interval, ratios, single_threaded, stopwatch

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], [3.0, 3.0, 3.0]),
        ([4.0, 1.0], [2.5, 1.0, 4.0]),
        ([7.0, 1.0, 4.0, 2.0, 6.0, 3.0, 5.0], [4.0, 1.0, 7.0]),
        ([float(i) for i in range(1, 10)], [5.0, 2.0, 8.0]),
        ([float(i) for i in range(1, 21)], [10.5, 6.0, 15.0]),
    ],
)
def test_the_interval_is_that_of_the_sign_test(values: list[float], expected: list[float]) -> None:
    assert median_interval(values) == expected


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 20.0, 200.0], [1.0, 10.0, 50.0]) == [2.0, 2.0, 4.0]


def test_rounds_alternate_between_the_arms_after_one_warm_up_of_each() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, CPU)
    assert "".join(calls) == "ab" + "ab" * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_the_stopwatch_counts_work_and_not_waiting() -> None:
    import time

    def work() -> None:
        begun = time.process_time()
        while time.process_time() - begun < 0.05:
            pass

    assert stopwatch(lambda: time.sleep(0.2), CPU) < 0.1 and stopwatch(work, CPU) >= 0.05


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with single_threaded():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
