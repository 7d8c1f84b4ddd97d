"""Make pasted pixels belong to their new surround: intensities of the rim, and a seamless join (gradient domain)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["join", "match_rim", "match_spread"]

GAIN_RANGE = (0.5, 2.0)  # contrast of a lesion is changed by no more than this
TOLERANCE = 1e-4  # of the solver, relative
MOST_STEPS = 2000

Statistics = tuple[tuple[float, float], ...]


Ends = tuple[float, float]


def match_rim(
    pixels: NDArray[np.float32], means: tuple[float, ...], new_means: tuple[float, ...], window: Ends, new_window: Ends
) -> NDArray[np.float32]:
    """Pixels (C, ...) mapped so that the mean of their surround becomes that of the new one, and the ends of the window those of the new.

    The map is linear in between, with a slope in [0.5, 2]: a black cyst stays black in a brighter image.

    Args:
        pixels: of the lesion and its surround.
        means, new_means: per channel, of the tissue around the lesion where it comes from, and around its new place.
        window, new_window: lowest and highest intensity of the two images.

    >>> match_rim(np.array([[0.0, 60.0, 255.0]], np.float32), (60.0,), (100.0,), (0.0, 255.0), (0.0, 255.0)).round().tolist()
    [[0.0, 100.0, 255.0]]
    """
    matched = np.empty_like(pixels)
    for index, (mean, new_mean) in enumerate(zip(means, new_means, strict=True)):
        darker, brighter = (_slope(mean - old, new_mean - new) for old, new in zip(window, new_window, strict=True))
        offset = pixels[index] - mean
        matched[index] = new_mean + np.where(offset < 0, darker, brighter) * offset
    return matched


def _slope(old: float, new: float) -> float:
    return float(np.clip(new / old, *GAIN_RANGE)) if old else 1.0


def match_spread(pixels: NDArray[np.float32], surround: Statistics, target: Statistics) -> NDArray[np.float32]:
    """Pixels (C, ...) with mean and standard deviation of their surround brought to those of the new one.

    Args:
        pixels: of the lesion and its surround.
        surround: (mean, standard deviation) per channel of the tissue around the lesion where it comes from.
        target: the same of the tissue around its new place. The gain is limited to [0.5, 2].

    >>> match_spread(np.array([[10.0, 14.0]], np.float32), ((10.0, 2.0),), ((50.0, 3.0),)).tolist()
    [[50.0, 56.0]]
    """
    matched = np.empty_like(pixels)
    for index, ((mean, spread), (new_mean, new_spread)) in enumerate(zip(surround, target, strict=True)):
        gain = float(np.clip(new_spread / spread, *GAIN_RANGE)) if spread > 0 else 1.0
        matched[index] = (pixels[index] - mean) * gain + new_mean
    return matched


def join(
    pixels: NDArray[np.float32], image: NDArray[Any], region: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Paste so that the join is continuous: the gradients of ``pixels`` inside the region, the values of ``image`` around it.

    The difference between image and pixels around the region is continued into it by Laplace's equation, and added (Perez et al.,
    Poisson image editing, 2003; the membrane form). Borders of the array are free.

    Args:
        pixels: (C, S, h, w), what is pasted, also just outside the region.
        image: (C, S, h, w), what it is pasted into.
        region: (S, h, w), True where it is pasted.
        spacing_mm: distances of slices, rows and columns: distant slices bind less.

    >>> region = np.zeros((1, 5, 5), bool)
    >>> region[0, 1:4, 1:4] = True
    >>> pixels = np.zeros((1, 1, 5, 5), np.float32)
    >>> pixels[..., 2, 2] = 5
    >>> join(pixels, pixels * 0 + 100, region, (1.0, 1.0, 1.0))[0, 0, 2].round().tolist()
    [0.0, 100.0, 105.0, 100.0, 0.0]
    """
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import cg

    count = int(region.sum())
    numbers = np.full(region.shape, -1)
    numbers[region] = np.arange(count)
    difference = image.astype(np.float64) - pixels
    degree, known = np.zeros(count), np.zeros((len(pixels), count))
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64], float]] = []
    closest = min(spacing_mm)
    for axis, mm in enumerate(spacing_mm):
        weight = (closest / mm) ** 2
        for step in (1, -1):
            here, there = _neighbours(region.ndim, axis, step)
            inside = region[here]
            near, neighbour = numbers[here][inside], numbers[there][inside]
            np.add.at(degree, near, weight)
            outer = neighbour < 0
            pairs.append((near[~outer], neighbour[~outer], weight))
            for channel, values in enumerate(difference):
                np.add.at(known[channel], near[outer], weight * values[there][inside][outer])
    rows, columns = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    weights = np.concatenate([np.full(len(pair[0]), pair[2]) for pair in pairs])
    matrix = diags_array(degree).tocsr() - coo_array((weights, (rows, columns)), shape=(count, count)).tocsr()
    joined = pixels.copy()
    for channel, values in enumerate(known):
        if not values.any():
            continue
        solution, failed = cg(matrix, values, rtol=TOLERANCE, maxiter=MOST_STEPS)
        if failed:
            raise RuntimeError(f"the join of a pasted lesion of {count} voxels did not converge in {MOST_STEPS} steps")
        joined[channel][region] += solution.astype(np.float32)
    return joined


def _neighbours(ndim: int, axis: int, step: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of an array that select all voxels with a neighbour along an axis, and these neighbours."""
    first, last = slice(None, -1), slice(1, None)
    whole = [slice(None)] * ndim
    here, there = list(whole), list(whole)
    here[axis], there[axis] = (first, last) if step > 0 else (last, first)
    return tuple(here), tuple(there)
