"""Rate of the UNet against that of matrix multiplication, and the operations that the time of an edit is spent on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed.time_and_memory import interleaved, median_interval
from monai_diffaug.studies.speed.timed_edits import Amount, EditSettings, dtype_name, make_volume
from monai_diffaug.studies.speed.timed_models import timed_models

__all__ = ["measure_profile", "shares_of", "unet_rate"]

CPU_MATRIX, GPU_MATRIX = 1024, 8192
ROWS = 16  # slices of a UNet call; with guidance it has twice as many rows
PROFILED_STEPS = 4
# kind of an operation -> parts of its name; the first kind that matches is used
KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product", "softmax", "bmm", "fmha", "flash"),
    "convolutions": ("conv",),
    "linear layers": ("addmm", "aten::mm", "linear", "gemm", "cutlass"),
    "norms": ("norm",),
    "activations": ("silu", "gelu", "sigmoid"),
    "copies": ("copy", "cat", "clone", "contiguous", "index", "memcpy", "upsample"),
}


def measure_profile(device: torch.device, amount: Amount) -> dict[str, Any]:
    """Rates of the UNets relative to a large multiplication in the same type, and the shares of an edit's time."""
    cases = list(timed_models(device, amount))
    peaks = {dtype: peak_rate(dtype, device, amount.rounds) for dtype in dict.fromkeys(case.model.dtype for case in cases)}
    rates = [{"model": case.name, **unet_rate(case.model, case.size_px, amount.rounds, peaks[case.model.dtype])} for case in cases]
    return {
        "peak_gflop_per_second": {dtype_name(dtype): rate for dtype, rate in peaks.items()},
        "unet": rates,
        "edits": [{"model": case.name, **shares_of(case.model, case.size_px)} for case in cases],
    }


def peak_rate(dtype: torch.dtype, device: torch.device, rounds: int) -> float:
    """GFLOP/s of the multiplication of two large square matrices."""
    side = GPU_MATRIX if device.type == "cuda" else CPU_MATRIX
    matrix = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    seconds = interleaved({"multiply": lambda: matrix @ matrix}, rounds, device)["multiply"]
    return 2e-9 * side**3 / median_interval(seconds)[0]


def unet_rate(model: Inpainter, size_px: int, rounds: int, peak: float) -> dict[str, Any]:
    """One guided UNet call: GFLOP (convolutions, multiplications, attention), GFLOP/s, and their share of the peak."""
    side = size_px // model.factor
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(ROWS, model.unet.config.in_channels, side, side, generator=generator).to(model.device, model.dtype)
    with torch.no_grad():
        context = model.encode_text([""] * ROWS + [EditSettings().prompt] * ROWS)
    call = unet_call(model, latents, torch.tensor(500, device=model.device), context)
    with FlopCounterMode(display=False) as counter:
        call()
    gflop = counter.get_total_flops() / 1e9
    rate = gflop / median_interval(interleaved({"call": call}, rounds, model.device)["call"])[0]
    return {
        "size_px": size_px,
        "rows": 2 * ROWS,
        "dtype": dtype_name(model.dtype),
        "gflop": gflop,
        "gflop_per_second": rate,
        "share_of_peak": rate / peak,
    }


def unet_call(model: Inpainter, latents: Tensor, timestep: Tensor, context: Tensor) -> Callable[[], Tensor]:
    """A step in the middle of a run, after the work that all steps share."""
    denoise = model.denoiser()
    model_input = latents if getattr(denoise, "shares_latents", False) else torch.cat([latents] * 2)

    @torch.no_grad()
    def run() -> Tensor:
        return denoise(model_input, timestep, context)

    run()
    return run


def shares_of(model: Inpainter, size_px: int) -> dict[str, Any]:
    """Shares of the time of an edit per kind of operation; operations without a kind are "other"."""
    edit = EditSettings(PROFILED_STEPS).edit(model, make_volume(size_px, ROWS, cell_px=model.factor))
    edit()
    on_gpu = model.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        edit()
    time_of: dict[str, float] = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profile.key_averages():
        time_of[kind_of(event.key)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(time_of.values())
    shares = {kind: value / total for kind, value in time_of.items()}
    return {"size_px": size_px, "slices": ROWS, "steps": PROFILED_STEPS, "shares": shares}


def kind_of(operation: str) -> str:
    """Kind of an operation or kernel by its name."""
    name = operation.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
