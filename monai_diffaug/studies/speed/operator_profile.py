"""How near the UNet comes to the rate of matrix multiplication, and where the time of an edit goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.speed_settings import Amount, EditSettings
from monai_diffaug.studies.speed.timed_volumes import make_volume
from monai_diffaug.studies.speed.timing import interleaved, median_interval

__all__ = ["measure_profile", "shares_of", "unet_rate"]

CPU_MATRIX, GPU_MATRIX = 1024, 8192
ROWS = 16  # slices of a UNet call; with guidance twice as many rows
GPU_SIZE_PX = 512
PROFILED_STEPS = 4
# kinds of operations by what their names hold, the first that fits
KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product", "softmax", "bmm", "fmha", "flash"),
    "convolutions": ("conv",),
    "linear layers": ("addmm", "aten::mm", "linear", "gemm", "cutlass"),
    "norms": ("norm",),
    "activations": ("silu", "gelu", "sigmoid"),
    "copies": ("copy", "cat", "clone", "contiguous", "index", "memcpy", "upsample"),
}


class _Case(NamedTuple):
    name: str
    model: Inpainter
    size_px: int


def measure_profile(device: torch.device, amount: Amount) -> dict[str, Any]:
    """The UNets' rates against that of a large multiplication in the same type, and the shares of an edit's time."""
    cases = list(_cases(device, amount))
    peaks = {dtype: peak_rate(dtype, device, amount.rounds) for dtype in dict.fromkeys(case.model.dtype for case in cases)}
    rows = [unet_rate(case.model, case.size_px, amount.rounds, peaks[case.model.dtype]) for case in cases]
    edits = [shares_of(case.model, case.size_px) for case in cases]
    return {
        "peak_gflop_a_second": {str(dtype).removeprefix("torch."): rate for dtype, rate in peaks.items()},
        "unet": [{"model": case.name, **row} for case, row in zip(cases, rows, strict=True)],
        "edits": [{"model": case.name, **edit} for case, edit in zip(cases, edits, strict=True)],
    }


def _cases(device: torch.device, amount: Amount) -> Iterator[_Case]:
    embedded = models.embedded(device)
    for size_px, _ in amount.volumes:
        yield _Case("embedded", embedded, size_px)
    if amount.larger_models:
        yield _Case("25 M UNet", models.medium(device), amount.volumes[0][0])
    if amount.larger_models and device.type == "cuda":
        large = models.in_precision(models.stable_diffusion(device), torch.bfloat16)
        yield _Case("Stable Diffusion 1.5 size", large, GPU_SIZE_PX)


def peak_rate(dtype: torch.dtype, device: torch.device, rounds: int) -> float:
    """GFLOP/s of the multiplication of two large square matrices."""
    side = GPU_MATRIX if device.type == "cuda" else CPU_MATRIX
    one = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    seconds = interleaved({"multiply": lambda: one @ one}, rounds, device)["multiply"]
    return 2e-9 * side**3 / median_interval(seconds)[0]


def unet_rate(model: Inpainter, size_px: int, rounds: int, peak: float) -> dict[str, Any]:
    """One guided UNet call: its GFLOP (convolutions, multiplications, attention), its rate and that rate's share of the peak."""
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
        "dtype": str(model.dtype).removeprefix("torch."),
        "gflop": gflop,
        "gflop_a_second": rate,
        "share_of_peak": rate / peak,
    }


def unet_call(model: Inpainter, latents: Tensor, timestep: Tensor, context: Tensor) -> Callable[[], Tensor]:
    """A step in the middle of a run: what the steps share is there already."""
    denoise = model.denoiser()
    given = latents if getattr(denoise, "shares_latents", False) else torch.cat([latents] * 2)

    @torch.no_grad()
    def run() -> Tensor:
        return denoise(given, timestep, context)

    run()
    return run


def shares_of(model: Inpainter, size_px: int) -> dict[str, Any]:
    """Shares of the time of an edit by kind of operation; what no kind names is "other"."""
    settings = EditSettings(PROFILED_STEPS)
    transform, volume = settings.transform(model), make_volume(size_px, ROWS, cell_px=model.factor)
    edit = partial(transform.apply, volume.image, volume.mask, settings.prompt, seed=settings.seed)
    edit()
    on_gpu = model.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        edit()
    spent: dict[str, float] = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profile.key_averages():
        spent[kind_of(event.key)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(spent.values())
    return {"size_px": size_px, "slices": ROWS, "steps": PROFILED_STEPS, "shares": {kind: value / total for kind, value in spent.items()}}


def kind_of(operation: str) -> str:
    """The kind of an operation or kernel by its name."""
    name = operation.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
