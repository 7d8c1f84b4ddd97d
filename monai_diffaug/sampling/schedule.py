"""Timesteps of a run: those of the diffusers scheduler, without the first ones if ``strength`` is below 1."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

__all__ = ["prepare_schedule"]

LATE_START = 0.05  # of the training timesteps: later than the even spacing by more than this, a run does not start from noise


def prepare_schedule(scheduler: Any, num_inference_steps: int, strength: float, device: torch.device) -> tuple[Any, torch.Tensor]:
    """A copy of the scheduler (schedulers have a state) and the timesteps of the run.

    Args:
        scheduler: any diffusers scheduler of diffusion models.
        num_inference_steps: steps of a full run; if the scheduler's spacing starts it far below pure noise, "trailing" spacing is used.
        strength: in (0, 1]; the share of the steps that is run. 1 starts from pure noise.
        device: of the timesteps.

    Raises:
        ValueError: strength outside (0, 1], fewer than one step, or a scheduler that cannot add noise to an image.

    >>> from diffusers import DDIMScheduler
    >>> _, timesteps = prepare_schedule(DDIMScheduler(), num_inference_steps=4, strength=0.5, device=torch.device("cpu"))
    >>> timesteps.tolist()
    [250, 0]
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be >= 1, got {num_inference_steps}")
    if not hasattr(scheduler, "init_noise_sigma") or (strength < 1.0 and not hasattr(scheduler, "add_noise")):
        raise ValueError(
            f"{type(scheduler).__name__} cannot put noise on an image as diffusion models need it (flow-matching ones cannot); give the "
            "pipeline another scheduler, e.g. DDIMScheduler.from_config(config, clip_sample=False); without clip_sample=False, a config of "
            "another family switches clipping to [-1, 1] on"
        )
    scheduler = deepcopy(scheduler)
    scheduler.set_timesteps(num_inference_steps, device=device)
    if _starts_too_late(scheduler, num_inference_steps):
        scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
        scheduler.set_timesteps(num_inference_steps, device=device)
    count = max(1, min(int(num_inference_steps * strength), num_inference_steps))
    start = max(num_inference_steps - count, 0) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler, scheduler.timesteps[start:]


def _starts_too_late(scheduler: Any, num_inference_steps: int) -> bool:
    """Whether the spacing starts a full run far below the timestep of even spacing, T (1 - 1/n), or a single step next to the image.

    The step of "leading" is rounded down: with T = 1000, 501 steps have the timesteps 500 to 0, and 334 steps 666 to 0. The only step of
    "leading" and of Euler's "linspace" is at 0.
    """
    train_steps = scheduler.config.num_train_timesteps
    start = float(scheduler.timesteps[0])
    if num_inference_steps == 1:
        return start < train_steps // 2
    even = train_steps * (1 - 1 / num_inference_steps)
    return "timestep_spacing" in scheduler.config and start < even - LATE_START * train_steps
