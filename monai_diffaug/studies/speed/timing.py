"""Interleaved rounds of several arms in one process, medians and their intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["Arms", "interleaved", "median_interval", "ratios", "single_threaded", "stopwatch"]

Arms = Mapping[str, Callable[[], object]]
CONFIDENCE = 0.95


def stopwatch(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: CPU time of this process (all its threads), or on a GPU the time between two events."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # events are recorded on the current device
            torch.cuda.synchronize()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000
    begun = time.process_time()
    run()
    return time.process_time() - begun


def interleaved(arms: Arms, rounds: int, device: torch.device, *, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each arm in each round, A B C A B C ...: drift of the machine meets all arms alike.

    Args:
        arms: what to time; every arm runs once before the first round.
        rounds: at least 1; 7 give an interval of the median with 95 % confidence.
        device: where the work is done.
        warm_up: False when the arms have run before.
    """
    for run in arms.values() if warm_up else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            seconds[name].append(stopwatch(run, device))
    return seconds


def median_interval(values: Sequence[float]) -> list[float]:
    """[median, low, high]: order statistics that hold the true median with a probability of at least 0.95.

    With fewer than six values no pair of them reaches that; then low and high are the smallest and the largest.
    """
    ordered, n = sorted(values), len(values)
    outside, cut = 0.0, 0
    while cut < n // 2:
        outside += 2 * math.comb(n, cut) / 2**n
        if outside > 1 - CONFIDENCE:
            break
        cut += 1
    cut = max(cut, 1)
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    return [middle, ordered[cut - 1], ordered[n - cut]]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """[median, low, high] of the ratio round by round."""
    return median_interval([a / b for a, b in zip(above, below, strict=True)])


class single_threaded:  # noqa: N801 - a context manager is used like a function
    """One thread for the work of torch on the CPU: process time then is the work, and does not depend on other cores."""

    def __enter__(self) -> None:
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *error: Any) -> None:
        torch.set_num_threads(self.threads)
