"""Repainting against loops around diffusers' pipeline: equality first, then interleaved rounds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_diffaug.geometry.slices import slice_plane, to_slices
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.bare_forwards import bare_edit
from monai_diffaug.studies.speed.equality import HALF_A_LEVEL, HALF_PRECISION, TOLERANCE, Gate, compare
from monai_diffaug.studies.speed.peak_memory import peak_bytes
from monai_diffaug.studies.speed.rivals import Rival, posterior_mode, rival_arms
from monai_diffaug.studies.speed.speed_settings import Amount, EditSettings
from monai_diffaug.studies.speed.timed_volumes import Volume, make_volume
from monai_diffaug.studies.speed.timing import interleaved, median_interval, ratios

__all__ = ["measure_edit", "measure_inpainting", "measure_roi"]

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMPTY_FRACTIONS = (0.0, 0.5)
MEDIUM_STEPS, MEDIUM_SLICES = 8, 8
GPU_SLICES, GPU_STEPS, GPU_SIZE_PX = 64, 20, 512
GATE_SLICES, GATE_STEPS, GATE_SIZE_PX = 2, 2, 256
ROI_SLICES = 2
MEMORY_STEPS = 2  # the peak does not depend on the number of steps


class _Case(NamedTuple):
    name: str
    model: Inpainter
    size_px: int
    slices: int
    empty_fraction: float
    steps: int
    rivals: str
    precise: Inpainter | None = None  # the same weights in float32, for the gate


def measure_inpainting(device: torch.device, amount: Amount) -> dict[str, Any]:
    """All rows of the inpainting table, and the gain by the region of interest."""
    rows = []
    for case in _cases(device, amount):
        logger.info("%s, %d px, %d steps, %.0f %% empty", case.name, case.size_px, case.steps, 100 * case.empty_fraction)
        volume = make_volume(case.size_px, case.slices, empty_fraction=case.empty_fraction, cell_px=case.model.factor)
        row = measure_edit(case.model, volume, EditSettings(case.steps), amount.rounds, case.rivals, precise=case.precise)
        rows.append({"model": case.name, "empty_fraction": case.empty_fraction, **row})
    model = models.embedded(device)
    roi = {"model": EMBEDDED, **measure_roi(model, 2 * model.size_px, ROI_SLICES, EditSettings(amount.steps), amount.rounds)}
    return {"edits": rows, "roi": [roi]}


def _cases(device: torch.device, amount: Amount) -> Iterator[_Case]:
    model = models.embedded(device)
    for size_px, slices in amount.volumes:
        for empty in EMPTY_FRACTIONS:
            yield _Case(EMBEDDED, model, size_px, slices, empty, amount.steps, "abc")
    size_px, slices = amount.volumes[0]
    for steps in amount.other_steps:
        yield _Case(EMBEDDED, model, size_px, min(slices, MEDIUM_SLICES), 0.0, steps, "b")
    if not amount.larger_models:
        return
    on_gpu = device.type == "cuda"
    yield _Case("25 M UNet", models.medium(device), size_px, GPU_SLICES if on_gpu else MEDIUM_SLICES, 0.0, MEDIUM_STEPS, "b")
    if on_gpu:
        precise = models.stable_diffusion(device)
        large = models.in_precision(precise, torch.bfloat16)
        yield _Case("Stable Diffusion 1.5 size", large, GPU_SIZE_PX, GPU_SLICES, 0.0, GPU_STEPS, "abc", precise)


def gates_of(model: Inpainter, volume: Volume, settings: EditSettings, rivals: str) -> dict[str, Gate]:
    """The comparison of this package's edit with that of each rival."""
    with posterior_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        edited = _edited(model, volume, settings)()
        arms = rival_arms(model, volume, settings)
        return {name: compare(edited, run(), volume, _allowed(name, model)) for name, run in arms.items() if name in rivals}


def _edited(model: Inpainter, volume: Volume, settings: EditSettings) -> Rival:
    """This package's arm."""
    transform, plane = settings.transform(model), slice_plane(None, "axial", 3)

    def run() -> Tensor:
        edited = transform.apply(volume.image, volume.mask, settings.prompt, seed=settings.seed).image
        return to_slices(torch.as_tensor(edited), plane)

    return run


def measure_edit(
    model: Inpainter, volume: Volume, settings: EditSettings, rounds: int, rivals: str = "abc", *, precise: Inpainter | None = None
) -> dict[str, Any]:
    """One row: the gate and, when it is passed, seconds, ratios, overhead over the bare forwards and peak memory.

    Args:
        model: on its device.
        volume: the sample.
        settings: of the edit.
        rounds: interleaved rounds.
        rivals: which of "a", "b", "c".
        precise: a model in half precision has these weights in float32: with them a short edit of a small volume must be equal too.
    """
    size_px = volume.masks.shape[-1]
    row: dict[str, Any] = {
        "size_px": size_px,
        "slices": len(volume.slices),
        "repainted": len(volume.indices),
        "steps": settings.steps,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    gates = gates_of(model, volume, settings, rivals)
    if precise is not None:
        small = make_volume(GATE_SIZE_PX, GATE_SLICES, cell_px=precise.factor)
        exact = gates_of(precise, small, replace(settings, steps=GATE_STEPS), rivals)
        gates |= {f"{name}, float32": gate for name, gate in exact.items()}
    row["gate"] = {name: gate.as_dict() for name, gate in gates.items()}
    row["passed"] = all(gate.passed for gate in gates.values())
    if not row["passed"]:
        return row
    with posterior_mode():
        arms = {name: run for name, run in rival_arms(model, volume, settings).items() if name in rivals}
        bare = bare_edit(model, len(volume.indices), size_px, settings)
        seconds = interleaved({"ours": _edited(model, volume, settings), **arms, "bare": bare}, rounds, model.device)
        row["seconds"] = {name: median_interval(values) for name, values in seconds.items()}
        row["faster_than"] = {name: ratios(seconds[name], seconds["ours"]) for name in arms}
        row["over_bare"] = ratios(seconds["ours"], seconds["bare"])
        row["peak_mb"] = _peaks(model, volume, settings, rivals)
    return row


def _allowed(rival: str, model: Inpainter) -> float:
    if model.dtype != torch.float32:
        return HALF_PRECISION
    return TOLERANCE + (HALF_A_LEVEL if rival == "a" else 0.0)


def _peaks(model: Inpainter, volume: Volume, settings: EditSettings, rivals: str) -> dict[str, float]:
    """MB of tensors held at once, in runs of a few steps."""
    short = replace(settings, steps=MEMORY_STEPS)
    transform = short.transform(model)
    arms = {name: run for name, run in rival_arms(model, volume, short).items() if name in rivals}
    peaks = {"ours": peak_bytes(lambda: transform.apply(volume.image, volume.mask, short.prompt, seed=short.seed), model.device)}
    peaks |= {name: peak_bytes(run, model.device) for name, run in arms.items()}
    return {name: round(peak / 1e6, 1) for name, peak in peaks.items()}


def measure_roi(model: Inpainter, size_px: int, slices: int, settings: EditSettings, rounds: int) -> dict[str, Any]:
    """How much is gained by repainting a square of half the slice's side instead of the whole slice, at native resolution."""
    volume = make_volume(size_px, slices, cell_px=model.factor, lesion=0.25)
    arms = {
        name: partial(edit.apply, volume.image, volume.mask, settings.prompt, seed=settings.seed)
        for name, edit in (("whole", settings.transform(model)), ("roi", settings.transform(model, roi=True)))
    }
    seconds = interleaved(arms, rounds, model.device)
    return {
        "size_px": size_px,
        "roi_px": model.size_px,
        "slices": slices,
        "seconds": {name: median_interval(values) for name, values in seconds.items()},
        "faster": ratios(seconds["whole"], seconds["roi"]),
    }
