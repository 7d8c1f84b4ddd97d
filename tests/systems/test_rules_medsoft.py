"""MedSoft-Diffusion across its parts: the controller's tokens in every block, dropped with the text; the soft mask in three places."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_diffaug import presets
from monai_diffaug.edit.options import InpaintOptions, SemanticController, SoftEdge
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec, shared_model, spec_of
from monai_diffaug.models.semantic_controller import SemanticDenoiser, SemanticModel, build_semantic_model
from monai_diffaug.sampling.inpaint_latents import inpaint_latents
from monai_diffaug.training import semantic_loss
from monai_diffaug.training.embedded.architectures import build_scheduler
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

PROMPT = "MRI of brain, glioma"


@pytest.fixture
def inpainter(random_inpainter: str) -> Inpainter:
    """The one that the transforms of this process use."""
    return shared_model(ModelSpec("inpainter", random_inpainter), "cpu", load_inpainter)


@pytest.fixture
def semantic(inpainter: Inpainter) -> SemanticModel:
    """As after training: nothing of it is zero."""
    torch.manual_seed(0)
    model = build_semantic_model(inpainter, grid=8)
    for part in model.parts.values():
        for name, value in part.named_parameters():
            if name.endswith(("to_v_ip.0.weight", "to_patches.weight", "to_global.weight")):
                torch.nn.init.normal_(value, 0, 0.3)
    model.parts.requires_grad_(False)
    return model


def picture() -> Tensor:
    return torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) * 100 + 20


def region() -> Tensor:
    """Its square of twice the extent is snapped to the model's 64 pixels: nothing is resampled."""
    mask = torch.zeros(1, 64, 64)
    mask[:, 18:46, 20:44] = 1
    return mask


def test_every_cross_attention_of_the_unet_has_a_second_one_for_the_tokens(inpainter, semantic) -> None:
    images, hard = torch.rand(1, 3, 64, 64) * 2 - 1, region()[None]
    context = inpainter.encode_text([PROMPT])
    crossing = [name for name in inpainter.unet.attn_processors if "attn2" in name]
    assert len(semantic.adapter.processors) == len(crossing) >= 3  # down, middle, up
    values = [processor.to_v_ip[0].weight for processor in semantic.adapter.processors]
    latents, timestep = torch.randn(1, 9, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor(500)
    denoise = SemanticDenoiser(inpainter, semantic, images=images, hard=hard, context=context)
    with torch.no_grad():
        plain = inpainter.denoise(latents, timestep, context)
        trained = [value.clone() for value in values]
        for only in range(len(values)):
            for k, value in enumerate(values):
                value.copy_(trained[k] if k == only else torch.zeros_like(value))
            assert not torch.allclose(denoise(latents, timestep, context), plain, atol=1e-4), crossing[only]


def test_the_prediction_follows_text_mask_and_global_token(inpainter, semantic) -> None:
    generator = torch.Generator().manual_seed(2)
    patches, pooled = torch.randn(1, 64, semantic.config.feature_dim, generator=generator), torch.randn(1, semantic.config.feature_dim)
    text, other = inpainter.encode_text([PROMPT, "ultrasound of breast, benign mass"])[:, None].unbind(0)
    hidden = torch.zeros(1, 64, 1)
    hidden[:, 20:30] = 1
    controller = semantic.parts["controller"]
    expected = controller(patches, pooled, text, hidden)[0]
    for changed in ((patches, pooled, other, hidden), (patches, pooled, text, 1 - hidden), (patches, pooled + 1, text, hidden)):
        assert not torch.allclose(controller(*changed)[0], expected, atol=1e-4)


def test_at_guidance_text_and_tokens_are_dropped_together_in_every_step(inpainter, semantic, random_inpainter) -> None:
    unet = semantic.unet_of(inpainter.unet)
    inputs: list[tuple[Tensor, Tensor]] = []
    hook = unet.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((kwargs["encoder_hidden_states"], kwargs["added_cond_kwargs"]["image_embeds"][0])),
        with_kwargs=True,
    )
    transform = DiffusionLocalInpaint(
        random_inpainter, options=InpaintOptions(control=SemanticController(semantic)), num_inference_steps=3, guidance_scale=3.0
    )
    assert transform.apply(picture(), region(), PROMPT, seed=1).record["applied"]
    hook.remove()
    assert len(inputs) == 3
    for context, tokens in inputs:
        assert torch.allclose(context, inpainter.encode_text(["", PROMPT]), atol=1e-6)
        assert len(tokens) == 2 and not tokens[0].any() and bool(tokens[1].any())


def test_training_drops_text_and_tokens_of_the_same_samples(inpainter, semantic) -> None:
    count, width = 8 * 8 + 1, semantic.config.feature_dim
    crops = semantic_loss.SemanticCrops(
        latents=torch.randn(2, 4, 16, 16),
        mask=torch.ones(2, 1, 16, 16),
        masked=torch.randn(2, 4, 16, 16),
        visible=torch.randn(2, count, width),
        whole=torch.randn(2, count, width),
        hidden=torch.ones(2, count - 1, 1),
        captions=[PROMPT, "CT of brain, haemorrhage"],
    )
    inputs: list[tuple[Tensor, Tensor]] = []
    hook = semantic.unet_of(inpainter.unet).register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((kwargs["encoder_hidden_states"], kwargs["added_cond_kwargs"]["image_embeds"][0])),
        with_kwargs=True,
    )
    generator = torch.Generator().manual_seed(0)
    semantic_loss.denoising_step(inpainter, semantic, crops, torch.tensor([False, True]), generator)
    hook.remove()
    ((context, tokens),) = inputs
    assert torch.allclose(context, inpainter.encode_text(["", crops.captions[1]]), atol=1e-6)
    assert not tokens[0].any() and bool(tokens[1].any())


def test_the_soft_mask_is_hard_for_the_unet_and_soft_in_sampler_and_composite(random_inpainter, runs, monkeypatch) -> None:
    ramp = torch.linspace(-0.9, 0.9, 64).expand(1, 3, 64, 64)
    monkeypatch.setattr(Inpainter, "decode", lambda self, z: ramp.expand(len(z), -1, -1, -1).clone())
    transform = DiffusionLocalInpaint(
        random_inpainter, num_inference_steps=2, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=40.0)), window=(0, 200)
    )
    result = transform.apply(picture(), region(), PROMPT, seed=1).image
    weights = transform.soft_region(picture(), region())
    ((denoise, named),) = runs
    unet_masks = [given[:, 4:5] for given, *_ in denoise.calls]
    mask, soft = named["mask"], named["soft"]
    assert len(unet_masks) == 2 and all(torch.equal(each.unique(), torch.tensor([0.0, 1.0])) for each in (mask, *unet_masks))
    assert all(torch.equal(each[:1], mask) for each in unet_masks)
    # (a) hard, and over all that may change: m > 0, not only M
    assert torch.equal(mask.bool(), torch.nn.functional.max_pool2d((weights[None] > 1e-3).float(), 4).bool())
    assert mask.sum() > torch.nn.functional.max_pool2d(region()[None], 4).sum()
    # (b) soft in the sampler
    assert torch.allclose(soft, torch.nn.functional.max_pool2d(weights[None], 4), atol=1e-5)
    assert int(((soft > 0.1) & (soft < 0.9)).sum()) > 20
    # (c) soft in the composite: original (1 - m) + repainted m
    expected = picture() * (1 - weights) + (ramp[0, :1] + 1) * 100 * weights
    assert torch.allclose(result, expected, atol=1e-3) and bool(((weights > 0.1) & (weights < 0.9)).any())


def test_a_hard_mask_is_hard_in_all_three_places(random_inpainter, runs) -> None:
    transform = DiffusionLocalInpaint(
        random_inpainter, num_inference_steps=1, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0.0))
    )
    result = transform.apply(picture(), region(), PROMPT, seed=1).image
    assert runs[0][1]["soft"] is None and torch.equal(transform.soft_region(picture(), region()), region())
    assert torch.equal(result[region() == 0], picture()[region() == 0])


def test_latents_stay_the_noised_original_where_one_minus_m_exceeds_the_share_of_the_steps() -> None:
    steps, scheduler = 5, build_scheduler()
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 6, 6, generator=generator)
    soft = torch.linspace(0, 1, 36).reshape(1, 1, 6, 6)
    inputs: list[Tensor] = []

    def denoise(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        inputs.append(latents[:, :4].clone())
        return 0.7 * latents[:, :4]

    result = inpaint_latents(
        denoise,
        scheduler,
        clean=clean,
        noise=noise,
        mask=(soft > 0).float(),
        masked=torch.zeros_like(clean),
        soft=soft,
        context=torch.zeros(1, 1, 1),
        num_inference_steps=steps,
    )
    reference = build_scheduler()
    reference.set_timesteps(steps)
    for i, reached in enumerate([*inputs[1:], result]):
        original = clean if i + 1 == steps else reference.add_noise(clean, noise, reference.timesteps[i + 1 : i + 2])
        unchanged = (reached == original).all(1, keepdim=True)
        assert torch.equal(unchanged, 1 - soft > i / steps)


@pytest.mark.parametrize("spacing_mm", [0.4, 1.0])  # above 1 mm the width in pixels counts millimetres
def test_a_width_in_mm_is_the_same_edge_as_its_pixels_at_that_spacing(random_inpainter, spacing_mm: float) -> None:
    image = MetaTensor(picture(), affine=torch.diag(torch.tensor([spacing_mm, spacing_mm, 1.0, 1.0])))
    width_px = 3.0  # of the slice; width_px_at_512 counts pixels of a region that is 512 wide, this one is 64
    regions = [
        DiffusionLocalInpaint(random_inpainter, options=InpaintOptions(soft_edge=edge)).soft_region(image, region())
        for edge in (SoftEdge(width_mm=width_px * spacing_mm), SoftEdge(width_px_at_512=width_px * 512 / 64))
    ]
    assert torch.allclose(*regions, atol=1e-5) and bool(((regions[0] > 0.1) & (regions[0] < 0.9)).any())


def test_the_preset_joins_controller_and_soft_mask() -> None:
    mask, _, inpaint = presets.medsoft_diffusion(modality="MRI").transforms
    edit = inpaint.inpaint
    assert edit.settings.options.control == SemanticController(spec_of("semantic_controller", "tiny")) and mask.label_key == "label"
    assert edit.settings.guided and edit.settings.options.soft_edge == SoftEdge()
