"""DDIM inversion: the initial noise from which the deterministic sampler returns a given image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_diffaug.sampling.inpaint_latents import Denoiser
from monai_diffaug.sampling.schedule import prepare_schedule

__all__ = ["Inversion", "invert_latents"]

EVALUATIONS = 2  # UNet calls a step; one everywhere would be the plain inversion of Dhariwal and Nichol 2021
EVALUATIONS_NEAR_IMAGE = 12  # measured: the embedded model's 12 steps then return the latents to 1 % of their spread
LEAST_SLOPE = 0.5  # b of an x0-predicting model goes to 0 at the last step; v and epsilon keep it near 1


class Inversion(NamedTuple):
    """What ``invert_latents`` returns.

    Attributes:
        noise: (B, C, h, w) start ``inpaint_latents`` from it, with the same steps, strength and prompt and without guidance.
        trajectory: (n + 1, B, C, h, w) the latents before each of the n steps, the last one the image's own.
    """

    noise: Tensor
    trajectory: Tensor


@torch.no_grad()
def invert_latents(
    denoise: Denoiser,
    scheduler: Any,
    *,
    clean: Tensor,
    context: Tensor,
    mask: Tensor | None = None,
    masked: Tensor | None = None,
    num_inference_steps: int = 20,
    strength: float = 1.0,
    evaluations: int = EVALUATIONS,
    evaluations_near_image: int = EVALUATIONS_NEAR_IMAGE,
) -> Inversion:
    """Noise that DDIM sampling without guidance takes back to ``clean``.

    A DDIM step is linear in the state x and the model's prediction f: x' = a f(x, t) + b x, with a and b from the
    scheduler alone. (For v-prediction, with the angle p = arccos sqrt(ab_t), b = cos(p - p') and a = -sin(p - p'): finite
    at zero terminal SNR too, where p = 90 degrees.) Inverting it is to solve x = (x' - a f(x, t)) / b for x. The usual
    inversion replaces f(x, t) by f(x', t), an error of the order of the step that 10 to 20 steps cannot afford; here the
    equation is iterated with Anderson's acceleration (Pan et al. 2023, AIDI), each sample on its own, so that the result
    does not depend on the batch. The step next to the image is stiff (what the model takes for noise there grows by
    sqrt((1 - ab_t) / (1 - ab_0)), about ten times) and gets more iterations. diffusers' ``DDIMInverseScheduler`` does one
    plain iteration, and converts v with the alpha of x' although the model was told t; that is why it is not used. No
    random number is drawn.

    Args:
        denoise: the UNet behind the ``Denoiser`` interface.
        scheduler: a diffusers DDIMScheduler that does not clip; it is copied, not changed.
        clean: (B, C, h, w) scaled latents of the image.
        context: (B, L, D) text states; use the prompt that is sampled with.
        mask: (B, 1, h, w), for 9-channel UNets.
        masked: (B, C, h, w) scaled latents of the image with the mask greyed out, for 9-channel UNets.
        num_inference_steps: steps of a full run; the same as in sampling.
        strength: share of the steps that is run; the same as in sampling.
        evaluations: UNet calls a step; more invert more exactly.
        evaluations_near_image: UNet calls of the step next to the image.

    Raises:
        ValueError: the scheduler's step cannot be inverted, or fewer than one evaluation.
    """
    if min(evaluations, evaluations_near_image) < 1:
        raise ValueError(f"evaluations must be >= 1, got {evaluations} and {evaluations_near_image} near the image")
    _check_invertible(scheduler)
    own, timesteps = prepare_schedule(scheduler, num_inference_steps, strength, clean.device)
    condition = [] if mask is None or masked is None else [mask, masked]
    states = [clean.float()]
    for timestep in timesteps.flip(0):
        of_prediction, of_state = _coefficients(own, timestep)
        after = states[-1]

        def residual(
            state: Tensor, timestep: Tensor = timestep, after: Tensor = after, a: float = of_prediction, b: float = of_state
        ) -> Tensor:
            model_input = torch.cat([own.scale_model_input(state.to(clean.dtype), timestep), *condition], dim=1)
            return (after - a * denoise(model_input, timestep, context).float() - b * state) / max(b, LEAST_SLOPE)

        states.append(_fixed_point(residual, after, evaluations_near_image if len(states) == 1 else evaluations))
    trajectory = torch.stack(states[::-1])
    noise = trajectory[0] / own.init_noise_sigma
    if strength < 1.0:  # there the sampler mixes the noise with the image itself
        alpha_bar = float(own.alphas_cumprod[int(timesteps[0])])
        noise = (trajectory[0] - math.sqrt(alpha_bar) * clean.float()) / math.sqrt(1 - alpha_bar)
    return Inversion(noise.to(clean.dtype), trajectory.to(clean.dtype))


def _check_invertible(scheduler: Any) -> None:
    from diffusers import DDIMScheduler

    if not isinstance(scheduler, DDIMScheduler) or scheduler.config.clip_sample or scheduler.config.thresholding:
        name = type(scheduler).__name__
        raise ValueError(
            f"noise_source='inverted' needs a DDIMScheduler that neither clips nor thresholds, got {name}; use "
            "pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)"
        )


def _coefficients(scheduler: Any, timestep: Tensor) -> tuple[float, float]:
    """(a, b) of the scheduler's step x' = a f + b x: what it makes of a unit prediction and of a unit state."""
    where = scheduler.alphas_cumprod.device  # not the CPU's once a pipeline on a GPU has added noise with this scheduler
    zero, one = torch.zeros(1, 1, 1, 1, device=where), torch.ones(1, 1, 1, 1, device=where)
    of_prediction = float(scheduler.step(one, timestep, zero, return_dict=False)[0])
    of_state = float(scheduler.step(zero, timestep, one, return_dict=False)[0])
    if not math.isfinite(of_prediction) or not math.isfinite(of_state):
        raise ValueError(
            f"the step at t={int(timestep)} cannot be inverted: prediction_type={scheduler.config.prediction_type!r} with zero "
            "terminal SNR says nothing about the image there; use a v_prediction model, or strength < 1"
        )
    return of_prediction, of_state


def _fixed_point(residual: Callable[[Tensor], Tensor], state: Tensor, evaluations: int) -> Tensor:
    """Anderson's method of depth one for residual(state) = 0, each sample of the batch on its own.

    Deeper ones were measured to converge more slowly: the residual is not linear over their longer memory.
    """
    rest = residual(state)
    step = rest
    for _ in range(evaluations - 1):
        moved = state + step
        new = residual(moved)
        change = new - rest
        norm = change.square().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(change.dtype).tiny)
        weight = (change * new).sum(dim=(1, 2, 3), keepdim=True) / norm
        state, rest, step = moved, new, new - weight * (step + change)
    return state + step
