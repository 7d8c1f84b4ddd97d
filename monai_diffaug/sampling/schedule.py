"""Which timesteps a run visits: the diffusers scheduler's own, cut at the start by ``strength``."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

__all__ = ["prepare_schedule"]


def prepare_schedule(scheduler: Any, num_inference_steps: int, strength: float, device: torch.device) -> tuple[Any, torch.Tensor]:
    """A private copy of the scheduler (they are stateful) and the timesteps to visit.

    Args:
        scheduler: any diffusers scheduler of diffusion models.
        num_inference_steps: steps of a full run; 1 estimates the image directly from pure noise, whatever the scheduler's spacing.
        strength: in (0, 1]; the share of the steps that is run. 1 starts from pure noise.
        device: where the timesteps live.

    Raises:
        ValueError: strength outside (0, 1], fewer than one step, or a scheduler that cannot put noise on an image.
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be >= 1, got {num_inference_steps}")
    if not hasattr(scheduler, "init_noise_sigma") or (strength < 1.0 and not hasattr(scheduler, "add_noise")):
        raise ValueError(
            f"{type(scheduler).__name__} cannot put noise on an image as diffusion models need it (flow-matching ones cannot); give the "
            "pipeline another scheduler, e.g. DDIMScheduler.from_config(...)"
        )
    own = deepcopy(scheduler)
    own.set_timesteps(num_inference_steps, device=device)
    if num_inference_steps == 1 and int(own.timesteps[0]) < own.config.num_train_timesteps // 2:
        # "leading" and Euler's "linspace" put the only step beside the image: nothing would be generated
        own = type(own).from_config(own.config, timestep_spacing="trailing")
        own.set_timesteps(1, device=device)
    count = max(1, min(int(num_inference_steps * strength), num_inference_steps))
    start = max(num_inference_steps - count, 0) * own.order
    if hasattr(own, "set_begin_index"):
        own.set_begin_index(start)
    return own, own.timesteps[start:]
