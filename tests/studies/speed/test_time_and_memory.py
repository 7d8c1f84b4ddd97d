"""Medians, intervals, the order of the rounds, and peak memory."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.studies.speed.time_and_memory import (
    interleaved,
    median_interval,
    medians,
    peak_bytes,
    peaks_mb,
    ratios,
    single_threaded,
    stopwatch,
)

CPU, MILLION = torch.device("cpu"), 10**6


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
def test_the_interval_of_a_median_is_that_of_the_sign_test(values: list[float], expected: list[float]) -> None:
    assert median_interval(values) == expected == medians({"arm": values})["arm"]


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 20.0, 200.0], [1.0, 10.0, 50.0]) == [2.0, 2.0, 4.0]


def test_rounds_alternate_between_the_arms_after_one_warm_up_call() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, CPU)
    assert "".join(calls) == "ab" + "ab" * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_the_stopwatch_measures_work_and_not_waiting() -> None:
    import time

    def work() -> None:
        begin = time.process_time()
        while time.process_time() - begin < 0.05:
            pass

    assert stopwatch(lambda: time.sleep(0.2), CPU) < 0.1 and stopwatch(work, CPU) >= 0.05


def test_the_number_of_threads_is_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), single_threaded():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_memory_that_is_released_before_the_next_allocation_is_not_added() -> None:
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.ones(MILLION)

    def all_at_once() -> None:
        tensors = [torch.ones(MILLION) for _ in range(5)]
        del tensors

    assert 4 * MILLION <= peak_bytes(one_after_the_other, CPU) < 9 * MILLION
    assert 20 * MILLION <= peak_bytes(all_at_once, CPU) < 22 * MILLION
    assert peaks_mb({"all": all_at_once}, CPU)["all"] == pytest.approx(20, abs=2)
