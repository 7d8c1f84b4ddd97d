"""Time and peak memory of calls: interleaved rounds of several arms in one process, medians and their intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

__all__ = ["Arms", "interleaved", "median_interval", "medians", "peak_bytes", "peaks_mb", "ratios", "single_threaded", "stopwatch"]

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
    begin = time.process_time()
    run()
    return time.process_time() - begin


def interleaved(arms: Arms, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each arm in each round, in the order A B C A B C ..., so that drift of the machine affects all arms equally.

    Every arm runs once before the first round. With 7 rounds the median has an interval with 95 % confidence.
    """
    for run in arms.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            seconds[name].append(stopwatch(run, device))
    return seconds


def median_interval(values: Sequence[float]) -> list[float]:
    """[median, low, high]: order statistics that contain the true median with a probability of at least 0.95 (sign test).

    With fewer than six values no pair of them reaches this probability; then low and high are the smallest and the largest value.

    >>> median_interval([7.0, 1.0, 4.0, 2.0, 6.0, 3.0, 5.0])
    [4.0, 1.0, 7.0]
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


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """[median, low, high] of each arm."""
    return {name: median_interval(values) for name, values in seconds.items()}


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """[median, low, high] of the ratio round by round."""
    return median_interval([a / b for a, b in zip(above, below, strict=True)])


def peaks_mb(arms: Arms, device: torch.device) -> dict[str, float]:
    """Peak memory of each arm in MB (10^6 bytes)."""
    return {name: round(peak_bytes(run, device) / 1e6, 1) for name, run in arms.items()}


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Maximum number of bytes of tensors during a call, minus those before it.

    On a GPU it is ``torch.cuda.max_memory_allocated``. On a CPU it is the running sum of the allocations and releases in torch's
    profile: the memory of the process only grows, so it says nothing about the second of two arms.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    if results is None:
        return 0
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    current = peak = 0
    for _, change in changes:
        current += change
        peak = max(peak, current)
    return peak


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch use one CPU thread, so that CPU time does not depend on the other cores; restores the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
