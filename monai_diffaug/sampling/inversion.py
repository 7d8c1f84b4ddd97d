"""DDIM inversion: the initial noise from which the deterministic sampler returns a known image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_diffaug.sampling.inpaint_latents import Denoiser
from monai_diffaug.sampling.schedule import prepare_schedule

__all__ = ["Inversion", "invert_latents"]

EVALUATIONS = 2  # UNet calls per step; one call per step is the plain inversion of Dhariwal and Nichol 2021
EVALUATIONS_NEAR_IMAGE = 12  # measured: with 12 steps the embedded model returns the latents to 1 % of their standard deviation
LEAST_SLOPE = 0.5  # b goes to 0 at the last step if the model predicts x0; for v and epsilon it is near 1


class Inversion(NamedTuple):
    """Result of ``invert_latents``.

    Attributes:
        noise: (B, C, h, w) ``inpaint_latents`` returns the image from it, with the same steps, strength and prompt, without guidance.
        trajectory: (n + 1, B, C, h, w) the latents before each of the n steps, and at the end those of the image.
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
    """Compute the noise from which DDIM sampling without guidance returns ``clean``.

    A DDIM step is linear in the state x and the model's prediction f: x' = a f(x, t) + b x, where a and b depend on the scheduler only.
    (For v-prediction, with the angle p = arccos sqrt(ab_t), b = cos(p - p') and a = -sin(p - p'); they are finite also at zero terminal
    SNR, where p = 90 degrees.) The inverse step solves x = (x' - a f(x, t)) / b for x. The usual inversion replaces f(x, t) by f(x', t);
    its error is of the order of the step, too large with 10 to 20 steps. Here the equation is iterated with Anderson acceleration (Pan
    et al. 2023, AIDI), per sample, so that the result does not depend on the batch. The step next to the image is stiff (the part of the
    image that the model takes for noise grows by sqrt((1 - ab_t) / (1 - ab_0)), about ten times) and gets more iterations. diffusers'
    ``DDIMInverseScheduler`` is not used: it does one plain iteration, and converts v with the alpha of x' although the model was called
    with t. No random number is drawn.

    Args:
        denoise: the UNet behind the ``Denoiser`` interface.
        scheduler: a diffusers DDIMScheduler that does not clip; it is copied, not changed.
        clean: (B, C, h, w) scaled latents of the image.
        context: (B, L, D) text states of the prompt that is used in sampling.
        mask: (B, 1, h, w), for 9-channel UNets.
        masked: (B, C, h, w) scaled latents of the image with the masked pixels set to grey, for 9-channel UNets.
        num_inference_steps: steps of a full run; the same as in sampling.
        strength: share of the steps that is run; the same as in sampling.
        evaluations: UNet calls per step; more calls are more exact.
        evaluations_near_image: UNet calls of the step next to the image.

    Raises:
        ValueError: the scheduler's step cannot be inverted, or fewer than one evaluation.

    >>> from diffusers import DDIMScheduler
    >>> from monai_diffaug.sampling.inpaint_latents import inpaint_latents
    >>> scheduler, clean = DDIMScheduler(clip_sample=False), torch.ones(1, 4, 2, 2)
    >>> def denoise(latents, timestep, context):
    ...     return 0.1 * latents
    >>> noise = invert_latents(denoise, scheduler, clean=clean, context=torch.zeros(1, 1, 1), num_inference_steps=4).noise
    >>> again = inpaint_latents(denoise, scheduler, clean=clean, noise=noise, mask=torch.ones(1, 1, 2, 2), context=torch.zeros(1, 1, 1),
    ...                         num_inference_steps=4)
    >>> bool(torch.allclose(again, clean, atol=1e-3))
    True
    """
    if min(evaluations, evaluations_near_image) < 1:
        raise ValueError(f"evaluations must be >= 1, got {evaluations} and {evaluations_near_image} near the image")
    _check_invertible(scheduler)
    scheduler, timesteps = prepare_schedule(scheduler, num_inference_steps, strength, clean.device)
    condition = [] if mask is None or masked is None else [mask, masked]
    states = [clean.float()]
    for timestep in timesteps.flip(0):
        of_prediction, of_state = _coefficients(scheduler, timestep)
        after = states[-1]

        def residual(
            state: Tensor, timestep: Tensor = timestep, after: Tensor = after, a: float = of_prediction, b: float = of_state
        ) -> Tensor:
            model_input = torch.cat([scheduler.scale_model_input(state.to(clean.dtype), timestep), *condition], dim=1)
            return (after - a * denoise(model_input, timestep, context).float() - b * state) / max(b, LEAST_SLOPE)

        states.append(_fixed_point(residual, after, evaluations_near_image if len(states) == 1 else evaluations))
    trajectory = torch.stack(states[::-1])
    noise = trajectory[0] / scheduler.init_noise_sigma
    if strength < 1.0:  # there the sampler mixes the noise with the image itself
        alpha_bar = float(scheduler.alphas_cumprod[int(timesteps[0])])
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
    """(a, b) of the scheduler's step x' = a f + b x: its results for a unit prediction and for a unit state."""
    device = scheduler.alphas_cumprod.device  # a pipeline on a GPU moves them there when it adds noise
    zero, one = torch.zeros(1, 1, 1, 1, device=device), torch.ones(1, 1, 1, 1, device=device)
    of_prediction = float(scheduler.step(one, timestep, zero, return_dict=False)[0])
    of_state = float(scheduler.step(zero, timestep, one, return_dict=False)[0])
    if not math.isfinite(of_prediction) or not math.isfinite(of_state):
        raise ValueError(
            f"the step at t={int(timestep)} cannot be inverted: prediction_type={scheduler.config.prediction_type!r} with zero "
            "terminal SNR says nothing about the image there; use a v_prediction model, or strength < 1"
        )
    return of_prediction, of_state


def _fixed_point(residual: Callable[[Tensor], Tensor], state: Tensor, evaluations: int) -> Tensor:
    """Solve residual(state) = 0 by Anderson acceleration of depth one (Anderson 1965), per sample of the batch.

    Depths above one converge more slowly here (measured): the residual is not linear over several iterations.
    """
    current = residual(state)
    step = current
    for _ in range(evaluations - 1):
        moved = state + step
        new = residual(moved)
        change = new - current
        norm = change.square().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(change.dtype).tiny)
        weight = (change * new).sum(dim=(1, 2, 3), keepdim=True) / norm
        state, current, step = moved, new, new - weight * (step + change)
    return state + step
