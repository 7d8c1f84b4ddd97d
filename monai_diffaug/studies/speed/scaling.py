"""Cost against the number of repainted slices and of samples: a line whose slope is that of the bare forwards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_diffaug.edit.slice_batches import batch_sizes
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.bare_forwards import bare_edit
from monai_diffaug.studies.speed.speed_settings import Amount, EditSettings
from monai_diffaug.studies.speed.timed_volumes import make_volume
from monai_diffaug.studies.speed.timing import interleaved, median_interval, ratios

__all__ = ["Line", "fit_line", "measure_scaling"]

MULTIPLES = (1, 2, 3, 4)  # of the batch size: a part of a batch costs more a slice, in the bare forwards too


def measure_scaling(device: torch.device, amount: Amount) -> list[dict[str, Any]]:
    """A row for slices of one volume, of which the others are empty, and one for samples of a batch."""
    model = models.embedded(device)
    settings = EditSettings(min(amount.steps, 4))
    size_px, _ = amount.volumes[0]
    wide, _ = batch_sizes(model, size_px, settings.guided, settings.batch_size)
    counts = [wide * k for k in (MULTIPLES if amount.larger_models else MULTIPLES[:3])]
    return [
        _slices(model, settings, size_px, counts, amount.rounds),
        _samples(model, settings, size_px, counts, amount.rounds),
    ]


def _slices(model: Inpainter, settings: EditSettings, size_px: int, counts: Sequence[int], rounds: int) -> dict[str, Any]:
    transform, depth = settings.transform(model), max(counts)
    volumes = {n: make_volume(size_px, depth, empty_fraction=1 - n / depth, cell_px=model.factor) for n in counts}
    arms = {
        f"ours {n}": partial(transform.apply, volume.image, volume.mask, settings.prompt, seed=settings.seed)
        for n, volume in volumes.items()
    }
    return _line("slices of a volume", arms, model, settings, size_px, counts, rounds)


def _samples(model: Inpainter, settings: EditSettings, size_px: int, counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """Samples of one slice each."""
    transform = settings.transform(model)
    volume = make_volume(size_px, max(counts), cell_px=model.factor)
    images, masks = list(volume.slices), list(volume.masks)
    seeds = list(range(max(counts)))
    arms = {f"ours {n}": partial(transform.apply_batch, images[:n], masks[:n], [settings.prompt] * n, seeds=seeds[:n]) for n in counts}
    return _line("samples of a batch", arms, model, settings, size_px, counts, rounds)


def _line(
    what: str, arms: dict[str, Any], model: Inpainter, settings: EditSettings, size_px: int, counts: Sequence[int], rounds: int
) -> dict[str, Any]:
    arms |= {f"bare {n}": bare_edit(model, n, size_px, settings) for n in counts}
    seconds = interleaved(arms, rounds, model.device)
    ours, bare = ([[seconds[f"{arm} {n}"][r] for n in counts] for r in range(rounds)] for arm in ("ours", "bare"))
    lines, bare_lines = [fit_line(counts, values) for values in ours], [fit_line(counts, values) for values in bare]
    middle = [median_interval(seconds[f"ours {n}"])[0] for n in counts]
    return {
        "of": what,
        "size_px": size_px,
        "steps": settings.steps,
        "counts": list(counts),
        "seconds": middle,
        "bare_seconds": [median_interval(seconds[f"bare {n}"])[0] for n in counts],
        "slope_ms": median_interval([1000 * line.slope for line in lines])[0],
        "bare_slope_ms": median_interval([1000 * line.slope for line in bare_lines])[0],
        "slope_over_bare": ratios([line.slope for line in lines], [line.slope for line in bare_lines])[0],
        "intercept_ms": median_interval([1000 * line.intercept for line in lines]),
        "bare_intercept_ms": median_interval([1000 * line.intercept for line in bare_lines]),
        "r_squared": fit_line(counts, middle).fit,
        "own_ms": _own_milliseconds(model, settings, size_px, rounds),
    }


def _own_milliseconds(model: Inpainter, settings: EditSettings, size_px: int, rounds: int) -> float:
    """An edit of one slice when the forwards take no time: the part of the intercept that is this package's, free of extrapolation."""
    transform, volume = settings.transform(models.instant(model)), make_volume(size_px, 1, cell_px=model.factor)
    edit = partial(transform.apply, volume.image, volume.mask, settings.prompt, seed=settings.seed)
    return 1000 * median_interval(interleaved({"own": edit}, rounds, model.device)["own"])[0]


class Line(NamedTuple):
    """y = slope x + intercept, and the share of the variance that it explains."""

    slope: float
    intercept: float
    fit: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The least-squares line."""
    slope, intercept = np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    spread = np.asarray(y) - np.mean(y)
    return Line(float(slope), float(intercept), float(1 - (residual**2).sum() / max(float((spread**2).sum()), 1e-30)))
