"""The sampler's step alone: this package's two tensor operations against the scheduler's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_diffaug.sampling.schedule import prepare_schedule
from monai_diffaug.sampling.step import make_step
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.speed_settings import Amount
from monai_diffaug.studies.speed.timing import interleaved, median_interval, ratios

__all__ = ["measure_scheduler_step"]

REPETITIONS = 50  # a step takes microseconds


def measure_scheduler_step(device: torch.device, amount: Amount, shape: tuple[int, ...] = (8, 4, 32, 32)) -> dict[str, Any]:
    """Microseconds a step for a batch of latents, and the largest difference of the two after a whole run."""
    scheduler = models.embedded(torch.device("cpu")).scheduler
    own, timesteps = prepare_schedule(scheduler, amount.steps, 1.0, device)
    own.alphas_cumprod = own.alphas_cumprod.to(device)  # as ``add_noise`` leaves it
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    predictions = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)

    def fused() -> Tensor:
        step = make_step(own, timesteps)
        latents = start
        for i in range(len(timesteps)):
            latents = step(i, predictions, latents)
        return latents

    def theirs() -> Tensor:
        latents = start
        for timestep in timesteps:
            latents = own.step(predictions, timestep, latents, return_dict=False)[0]
        return latents

    expected = theirs()
    largest = float((fused() - expected).abs().max() / expected.abs().max())
    seconds = interleaved(
        {"ours": lambda: [fused() for _ in range(REPETITIONS)], "diffusers": lambda: [theirs() for _ in range(REPETITIONS)]},
        amount.rounds,
        device,
    )
    scale = 1e6 / (REPETITIONS * len(timesteps))
    return {
        "shape": list(shape),
        "relative_difference": largest,
        "microseconds": {name: median_interval([scale * value for value in values]) for name, values in seconds.items()},
        "faster": ratios(seconds["diffusers"], seconds["ours"]),
    }
