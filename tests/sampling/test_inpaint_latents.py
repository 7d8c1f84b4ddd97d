from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.sampling.inpaint_latents import inpaint_latents

PROMPT, SIZE = "ultrasound of breast, malignant mass", 64


def diffusers_result(
    model: Inpainter, image: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor, strength: float, monkeypatch
) -> torch.Tensor:
    """Latents of StableDiffusionInpaintPipeline for tensors, with the mode of the VAE's posterior instead of a sample."""
    from diffusers import StableDiffusionInpaintPipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as module

    monkeypatch.setattr(module, "retrieve_latents", lambda output, generator=None, sample_mode="mode": output.latent_dist.mode())
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise)
    pipeline = StableDiffusionInpaintPipeline(
        model.vae, model.text_encoder, model.tokenizer, model.unet, model.scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPT,
        image=image,
        mask_image=mask,
        height=SIZE,
        width=SIZE,
        num_inference_steps=5,
        guidance_scale=3.0,
        strength=strength,
        output_type="latent",
    ).images


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("channels", [9, 4])
def test_a_hard_mask_equals_the_diffusers_pipeline(channels, strength, random_inpainter, random_inpainter_4ch, monkeypatch) -> None:
    source = random_inpainter if channels == 9 else random_inpainter_4ch
    model = load_inpainter(ModelSpec("inpainter", source), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, SIZE, SIZE, generator=generator) * 2 - 1
    noise = torch.randn(1, 4, SIZE // 4, SIZE // 4, generator=generator)
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 16:40, 24:52] = 1
    with torch.no_grad():
        ours = inpaint_latents(
            model.denoise,
            model.scheduler,
            clean=model.encode(image),
            masked=model.encode(image * (mask < 0.5)) if channels == 9 else None,
            noise=noise,
            mask=model.latent_mask(mask),
            context=model.encode_text([PROMPT]),
            negative_context=model.encode_text([""]),
            guidance_scale=3.0,
            num_inference_steps=5,
            strength=strength,
        )
    theirs = diffusers_result(model, image, mask, noise, strength, monkeypatch)
    assert torch.isfinite(ours).all() and ours.std() > 0.01
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=2e-5)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "LCMScheduler",
    ],
)
def test_each_diffusers_scheduler_works_and_is_not_changed(name) -> None:
    import diffusers

    scheduler = getattr(diffusers, name)()
    before = dict(vars(scheduler))
    clean = torch.zeros(2, 4, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    result = inpaint_latents(
        lambda latents, timestep, context: 0.1 * latents[:, :4],
        scheduler,
        clean=clean,
        noise=torch.randn(2, 4, 8, 8),
        mask=mask,
        context=torch.zeros(2, 1, 1),
        num_inference_steps=4,
        generators=[torch.Generator().manual_seed(i) for i in range(2)],
    )
    assert torch.isfinite(result).all()
    assert torch.equal(result * (1 - mask), clean)
    assert vars(scheduler).keys() == before.keys() and scheduler.num_inference_steps == before["num_inference_steps"]


def test_a_soft_mask_keeps_more_of_the_original_the_lower_its_weight() -> None:
    from diffusers import DDIMScheduler

    clean = torch.ones(1, 4, 4, 4)
    soft = torch.tensor([0.0, 0.3, 0.7, 1.0]).expand(1, 1, 4, 4)
    result = inpaint_latents(
        lambda latents, timestep, context: torch.zeros_like(latents),
        DDIMScheduler(clip_sample=False),
        clean=clean,
        noise=torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)),
        mask=(soft > 0).float(),
        soft=soft,
        context=torch.zeros(1, 1, 1),
        num_inference_steps=10,
    )
    distance = (result - clean).abs().mean(dim=(0, 1, 2))
    assert distance[0] == 0 and distance[1] < distance[2] < distance[3]


def test_guidance_without_a_negative_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="negative_context"):
        inpaint_latents(
            lambda latents, timestep, context: latents,
            None,
            clean=torch.zeros(1, 4, 2, 2),
            noise=torch.zeros(1, 4, 2, 2),
            mask=torch.ones(1, 1, 2, 2),
            context=torch.zeros(1, 1, 1),
            guidance_scale=2.0,
        )
