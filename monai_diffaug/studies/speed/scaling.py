"""Time against the number of repainted slices and of samples: a line, whose slope should be that of the bare forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_diffaug.edit.slice_batches import batch_sizes
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed.rivals import bare_edit
from monai_diffaug.studies.speed.time_and_memory import interleaved, median_interval, ratios
from monai_diffaug.studies.speed.timed_edits import Amount, EditSettings, make_volume
from monai_diffaug.studies.speed.timed_models import embedded, instant

__all__ = ["Line", "fit_line", "measure_scaling"]

MULTIPLES = (1, 2, 3, 4)  # of the batch size: an incomplete batch takes more time per slice, also in the bare forwards
Edits = Mapping[int, Callable[[], object]]
"""Number of slices or samples -> the call that repaints them."""


def measure_scaling(device: torch.device, amount: Amount) -> list[dict[str, Any]]:
    """A row for the slices of one volume, of which the others have no mask, and one for the samples of a batch."""
    model = embedded(device)
    settings = EditSettings(min(amount.steps, 4))
    size_px, _ = amount.volumes[0]
    wide, _ = batch_sizes(model, size_px, settings.guided, settings.batch_size)
    counts = [wide * k for k in (MULTIPLES if amount.larger_models else MULTIPLES[:3])]
    return [
        _line("slices of a volume", _slices(model, settings, size_px, counts), model, settings, size_px, amount.rounds),
        _line("samples of a batch", _samples(model, settings, size_px, counts), model, settings, size_px, amount.rounds),
    ]


def _slices(model: Inpainter, settings: EditSettings, size_px: int, counts: Sequence[int]) -> Edits:
    depth = max(counts)
    return {n: settings.edit(model, make_volume(size_px, depth, empty_fraction=1 - n / depth, cell_px=model.factor)) for n in counts}


def _samples(model: Inpainter, settings: EditSettings, size_px: int, counts: Sequence[int]) -> Edits:
    """Samples of one slice each."""
    transform = settings.transform(model)
    volume = make_volume(size_px, max(counts), cell_px=model.factor)
    images, masks, seeds = list(volume.slices), list(volume.masks), list(range(max(counts)))
    return {n: partial(transform.apply_batch, images[:n], masks[:n], [settings.prompt] * n, seeds=seeds[:n]) for n in counts}


def _line(what: str, edits: Edits, model: Inpainter, settings: EditSettings, size_px: int, rounds: int) -> dict[str, Any]:
    counts = list(edits)
    arms = {f"ours {n}": edit for n, edit in edits.items()} | {f"bare {n}": bare_edit(model, n, size_px, settings) for n in counts}
    seconds = interleaved(arms, rounds, model.device)
    lines, bare_lines = ([fit_line(counts, [seconds[f"{arm} {n}"][r] for n in counts]) for r in range(rounds)] for arm in ("ours", "bare"))
    medians, bare_medians = ([median_interval(seconds[f"{arm} {n}"])[0] for n in counts] for arm in ("ours", "bare"))
    return {
        "of": what,
        "size_px": size_px,
        "steps": settings.steps,
        "counts": counts,
        "seconds": medians,
        "bare_seconds": bare_medians,
        "slope_ms": median_interval([1000 * line.slope for line in lines])[0],
        "bare_slope_ms": median_interval([1000 * line.slope for line in bare_lines])[0],
        "slope_over_bare": ratios([line.slope for line in lines], [line.slope for line in bare_lines])[0],
        "intercept_ms": median_interval([1000 * line.intercept for line in lines]),
        "bare_intercept_ms": median_interval([1000 * line.intercept for line in bare_lines]),
        "r_squared": fit_line(counts, medians).fit,
        "package_ms": package_milliseconds(model, settings, size_px, rounds),
    }


def package_milliseconds(model: Inpainter, settings: EditSettings, size_px: int, rounds: int) -> float:
    """Time of an edit of one slice if the forward passes take no time: the package's part of the intercept, without extrapolation."""
    edit = settings.edit(instant(model), make_volume(size_px, 1, cell_px=model.factor))
    return 1000 * median_interval(interleaved({"edit": edit}, rounds, model.device)["edit"])[0]


class Line(NamedTuple):
    """y = slope x + intercept; ``fit`` is the coefficient of determination R^2."""

    slope: float
    intercept: float
    fit: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least-squares line.

    >>> [round(value, 6) for value in fit_line([1, 2, 3], [3, 5, 7])]
    [2.0, 1.0, 1.0]
    """
    slope, intercept = np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    deviation = np.asarray(y) - np.mean(y)
    return Line(float(slope), float(intercept), float(1 - (residual**2).sum() / max(float((deviation**2).sum()), 1e-30)))
