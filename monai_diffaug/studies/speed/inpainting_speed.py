"""Repainting against loops around diffusers' pipeline, and one step of the sampler: results are compared, then timed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.geometry.slices import slice_plane, to_slices
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.sampling.schedule import prepare_schedule
from monai_diffaug.sampling.step import make_step
from monai_diffaug.studies.speed.equality import HALF_A_LEVEL, HALF_PRECISION, TOLERANCE, Gate, compare
from monai_diffaug.studies.speed.rivals import Rival, bare_edit, posterior_mode, rival_arms
from monai_diffaug.studies.speed.time_and_memory import interleaved, medians, peaks_mb, ratios
from monai_diffaug.studies.speed.timed_edits import Amount, EditSettings, Volume, dtype_name, make_volume
from monai_diffaug.studies.speed.timed_models import EMBEDDED, TimedModel, embedded, timed_models

__all__ = ["measure_edit", "measure_inpainting", "measure_roi", "measure_scheduler_step"]

logger = logging.getLogger(__name__)

EMPTY_FRACTIONS = (0.0, 0.5)
MEDIUM_STEPS, MEDIUM_SLICES = 8, 8
GPU_SLICES, GPU_STEPS = 64, 20
GATE_SLICES, GATE_STEPS, GATE_SIZE_PX = 2, 2, 256
ROI_SLICES = 2
MEMORY_STEPS = 2  # the peak does not depend on the number of steps
REPETITIONS = 50  # a step of the sampler takes microseconds


def measure_inpainting(device: torch.device, amount: Amount) -> dict[str, Any]:
    """All rows of the inpainting table, and the gain of the region of interest."""
    rows = []
    for timed, slices, empty_fraction, steps, rivals in _cases(device, amount):
        logger.info("%s, %d px, %d steps, %.0f %% empty", timed.name, timed.size_px, steps, 100 * empty_fraction)
        volume = make_volume(timed.size_px, slices, empty_fraction=empty_fraction, cell_px=timed.model.factor)
        row = measure_edit(timed.model, volume, EditSettings(steps), amount.rounds, rivals, precise=timed.precise)
        rows.append({"model": timed.name, "empty_fraction": empty_fraction, **row})
    model = embedded(device)
    roi = {"model": EMBEDDED, **measure_roi(model, 2 * model.size_px, ROI_SLICES, EditSettings(amount.steps), amount.rounds)}
    return {"edits": rows, "roi": [roi]}


def _cases(device: torch.device, amount: Amount) -> Iterator[tuple[TimedModel, int, float, int, str]]:
    """Model, number of slices, share of empty slices, steps and rivals of each row."""
    slices_of = dict(amount.volumes)
    for timed in timed_models(device, amount):
        if timed.name == EMBEDDED:
            yield from ((timed, slices_of[timed.size_px], empty, amount.steps, "abc") for empty in EMPTY_FRACTIONS)
            if timed.size_px == amount.volumes[0][0]:
                slices = min(slices_of[timed.size_px], MEDIUM_SLICES)
                yield from ((timed, slices, 0.0, steps, "b") for steps in amount.other_steps)
        elif timed.precise is None:
            yield timed, GPU_SLICES if device.type == "cuda" else MEDIUM_SLICES, 0.0, MEDIUM_STEPS, "b"
        else:
            yield timed, GPU_SLICES, 0.0, GPU_STEPS, "abc"


def gates_of(model: Inpainter, volume: Volume, settings: EditSettings, rivals: str) -> dict[str, Gate]:
    """Comparison of this package's edit with that of each rival."""
    with posterior_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        edited = _edited(model, volume, settings)()
        arms = rival_arms(model, volume, settings, rivals)
        return {name: compare(edited, run(), volume, _allowed(name, model)) for name, run in arms.items()}


def _edited(model: Inpainter, volume: Volume, settings: EditSettings) -> Rival:
    """This package's arm."""
    edit, plane = settings.edit(model, volume), slice_plane(None, "axial", 3)

    def run() -> Tensor:
        edited: Any = edit()
        return to_slices(torch.as_tensor(edited.image), plane)

    return run


def _allowed(rival: str, model: Inpainter) -> float:
    if model.dtype != torch.float32:
        return HALF_PRECISION
    return TOLERANCE + (HALF_A_LEVEL if rival == "a" else 0.0)


def measure_edit(
    model: Inpainter, volume: Volume, settings: EditSettings, rounds: int, rivals: str = "abc", *, precise: Inpainter | None = None
) -> dict[str, Any]:
    """One row: the gate and, if it is passed, seconds, ratios, overhead over the bare forwards and peak memory.

    ``precise`` has the weights of a model in half precision in float32: a short edit of a small volume with it must be equal, too.
    """
    size_px = volume.masks.shape[-1]
    row: dict[str, Any] = {
        "size_px": size_px,
        "slices": len(volume.slices),
        "repainted": len(volume.indices),
        "steps": settings.steps,
        "dtype": dtype_name(model.dtype),
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
        arms = rival_arms(model, volume, settings, rivals)
        bare = bare_edit(model, len(volume.indices), size_px, settings)
        seconds = interleaved({"ours": _edited(model, volume, settings), **arms, "bare": bare}, rounds, model.device)
        short = replace(settings, steps=MEMORY_STEPS)
        peaks = peaks_mb({"ours": short.edit(model, volume), **rival_arms(model, volume, short, rivals)}, model.device)
    return {
        **row,
        "seconds": medians(seconds),
        "faster_than": {name: ratios(seconds[name], seconds["ours"]) for name in arms},
        "over_bare": ratios(seconds["ours"], seconds["bare"]),
        "peak_mb": peaks,
    }


def measure_roi(model: Inpainter, size_px: int, slices: int, settings: EditSettings, rounds: int) -> dict[str, Any]:
    """Gain of repainting a square of half the slice's side instead of the whole slice, at native resolution."""
    volume = make_volume(size_px, slices, cell_px=model.factor, lesion=0.25)
    arms = {name: settings.edit(model, volume, whole_slice=whole) for name, whole in (("whole", True), ("roi", False))}
    seconds = interleaved(arms, rounds, model.device)
    return {
        "size_px": size_px,
        "roi_px": model.size_px,
        "slices": slices,
        "seconds": medians(seconds),
        "faster": ratios(seconds["whole"], seconds["roi"]),
    }


def measure_scheduler_step(device: torch.device, amount: Amount, shape: tuple[int, ...] = (8, 4, 32, 32)) -> dict[str, Any]:
    """Microseconds of a sampler step, by ``make_step`` and by diffusers, and their largest relative difference after a whole run."""
    scheduler, timesteps = prepare_schedule(embedded(torch.device("cpu")).scheduler, amount.steps, 1.0, device)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)  # as ``add_noise`` does
    start, predictions = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device) for seed in (0, 1))

    def ours() -> Tensor:
        step = make_step(scheduler, timesteps)
        latents = start
        for i in range(len(timesteps)):
            latents = step(i, predictions, latents)
        return latents

    def theirs() -> Tensor:
        latents = start
        for timestep in timesteps:
            latents = scheduler.step(predictions, timestep, latents, return_dict=False)[0]
        return latents

    expected = theirs()
    difference = float((ours() - expected).abs().max() / expected.abs().max())
    arms = {"ours": lambda: [ours() for _ in range(REPETITIONS)], "diffusers": lambda: [theirs() for _ in range(REPETITIONS)]}
    seconds = interleaved(arms, amount.rounds, device)
    scale = 1e6 / (REPETITIONS * len(timesteps))
    return {
        "shape": list(shape),
        "relative_difference": difference,
        "microseconds": medians({name: [scale * value for value in values] for name, values in seconds.items()}),
        "faster": ratios(seconds["diffusers"], seconds["ours"]),
    }
