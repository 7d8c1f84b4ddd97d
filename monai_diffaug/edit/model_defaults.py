"""Settings that a transform leaves to the model: those that the model paints best with, by the modality of the prompt."""

from __future__ import annotations

from dataclasses import replace

from monai_diffaug.edit.options import RepaintSettings
from monai_diffaug.edit.stack import PromptMix
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.painting import painting_for

__all__ = ["with_model_defaults"]


def with_model_defaults(settings: RepaintSettings, model: Inpainter, prompt: PromptMix) -> RepaintSettings:
    """The settings with all that is None filled in for a prompt, by its (weight, text) pair of the largest weight.

    Inverted noise is to give the original back, so nothing is added to it; a noise gain is for DDIM only.
    """
    options, noise = settings.options, settings.options.noise
    painting = painting_for(model.paintings, max(prompt, default=(0.0, ""))[1])
    is_random = noise.source == "random"
    takes_gain = is_random and type(model.scheduler).__name__ == "DDIMScheduler"
    noise = replace(
        noise,
        gain=(painting.noise_gain if takes_gain else 0.0) if noise.gain is None else noise.gain,
        acquisition=(is_random and painting.acquisition) if noise.acquisition is None else noise.acquisition,
    )
    interval = painting.guidance_interval if options.guidance_interval is None else options.guidance_interval
    scale = painting.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    return replace(settings, guidance_scale=scale, options=replace(options, noise=noise, guidance_interval=interval))
