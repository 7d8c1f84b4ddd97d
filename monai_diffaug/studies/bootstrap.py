"""Percentile bootstrap intervals that resample whole groups: near-duplicate images are no independent evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Interval", "interval", "mean_interval"]


@dataclass(frozen=True)
class Interval:
    """A figure and its interval; n is the number of images behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(
    statistic: Callable[[NDArray[np.int64]], float], groups: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Value and percentile interval of a statistic of images.

    Args:
        statistic: from the indices of images (with repetitions) to a number; resamples with a nan result are left out.
        groups: (n,) group of each image; groups are drawn with replacement, with all their images.
        resamples, level, seed: number of resamples, level of the interval in (0, 1), and seed of the draws.
    """
    names = np.asarray(groups)
    if names.ndim != 1 or len(names) == 0 or not 0 < level < 1:
        raise ValueError(f"groups must be (n,) with n >= 1 and level in (0, 1), got {names.shape} and {level}")
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng = np.random.RandomState(seed)
    draws = [statistic(np.concatenate([members[i] for i in rng.randint(len(members), size=len(members))])) for _ in range(resamples)]
    finite = np.array([d for d in draws if np.isfinite(d)])
    value = float(statistic(np.arange(len(names))))
    if len(finite) == 0:
        return Interval(value, float("nan"), float("nan"), len(names))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(names))


def mean_interval(values: ArrayLike, groups: ArrayLike, *, resamples: int = 2000) -> Interval:
    """Mean of the images' values (n,) and its interval; see ``interval``.

    >>> print(mean_interval([1.0, 1.0, 0.0, 1.0], groups=[0, 1, 2, 3]))
    0.750 [0.250, 1.000]
    """
    column = np.asarray(values, np.float64)
    return interval(lambda picks: float(column[picks].mean()), groups, resamples=resamples)
