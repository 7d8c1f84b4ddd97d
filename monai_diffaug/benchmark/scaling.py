"""Cost against the number of repainted slices and of samples: a line whose slope is that of the bare forwards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from monai_diffaug.benchmark import models
from monai_diffaug.benchmark.bare import bare_edit
from monai_diffaug.benchmark.settings import Amount, EditSettings
from monai_diffaug.benchmark.timing import interleaved, median_interval
from monai_diffaug.benchmark.volumes import make_volume
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.repaint import batch_sizes

__all__ = ["fit_line", "measure_scaling"]

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
    arms = {
        f"ours {n}": partial(transform.apply_batch, images[:n], masks[:n], [settings.prompt] * n, seeds=seeds[:n]) for n in counts
    }
    return _line("samples of a batch", arms, model, settings, size_px, counts, rounds)


def _line(
    what: str, arms: dict[str, Any], model: Inpainter, settings: EditSettings, size_px: int, counts: Sequence[int], rounds: int
) -> dict[str, Any]:
    arms |= {f"bare {n}": bare_edit(model, n, size_px, settings) for n in counts}
    seconds = interleaved(arms, rounds, model.device)
    medians = {name: median_interval(values)[0] for name, values in seconds.items()}
    ours, bare = ([medians[f"{arm} {n}"] for n in counts] for arm in ("ours", "bare"))
    slope, intercept, fit = fit_line(counts, ours)
    bare_slope, _, _ = fit_line(counts, bare)
    return {
        "of": what,
        "size_px": size_px,
        "steps": settings.steps,
        "counts": list(counts),
        "seconds": ours,
        "bare_seconds": bare,
        "slope_ms": 1000 * slope,
        "intercept_ms": 1000 * intercept,
        "r_squared": fit,
        "bare_slope_ms": 1000 * bare_slope,
        "slope_over_bare": slope / bare_slope,
    }


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and share of explained variance of the least-squares line."""
    slope, intercept = np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    spread = np.asarray(y) - np.mean(y)
    return float(slope), float(intercept), float(1 - (residual**2).sum() / max(float((spread**2).sum()), 1e-30))
