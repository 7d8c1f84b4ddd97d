"""The options of an edit, through the transform and on random-weight models."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug.edit.options import ControlNet, InpaintOptions, Noise, Region, Run, SoftEdge
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.lean_unet import LeanUnet
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

PROMPT = "ultrasound of breast, malignant mass"


def picture(size: tuple[int, ...] = (70, 90)) -> torch.Tensor:
    return torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) * 100 + 20


def square_mask(size: tuple[int, ...] = (70, 90)) -> torch.Tensor:
    mask = torch.zeros(1, *size)
    mask[:, 30:44, 40:52] = 1
    return mask


@pytest.fixture
def fast(random_inpainter: str) -> dict[str, object]:
    return {"model": random_inpainter, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def controlnet(random_inpainter: str) -> object:
    """A ControlNet with outputs that are not zero, so that it changes something."""
    from monai_diffaug.models.controlnet import build_controlnet

    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    network = build_controlnet(model.unet, model.factor)
    generator = torch.Generator().manual_seed(5)
    for block in [*network.controlnet_down_blocks, network.controlnet_mid_block]:
        block.weight.data = torch.randn(block.weight.shape, generator=generator) * 0.1
    embedding = network.controlnet_cond_embedding.conv_out
    embedding.weight.data = torch.randn(embedding.weight.shape, generator=generator)
    return network


def edit(transform: DiffusionLocalInpaint, **named: object) -> torch.Tensor:
    return transform.apply(picture(), square_mask(), PROMPT, seed=4, **named).image


@pytest.mark.parametrize(
    ("group", "option", "value", "names"),
    [
        (Noise, "rho", -0.1, r"\[0, 1\]"),
        (Noise, "source", "guessed", "random, inverted"),
        (Noise, "scale", 1.5, r"\[0, 1\]"),
        (InpaintOptions, "guidance_interval", (0.6, 0.2), "begin < end"),
        (InpaintOptions, "guidance_interval", (0.5,), r"\(begin, end\)"),
        (SoftEdge, "width_px_at_512", -1.0, ">= 0 pixels"),
        (SoftEdge, "width_mm", -1.0, ">= 0 mm"),
        (SoftEdge, "mode", "x", "grow, inner, centre"),
        (Region, "context", 0.5, ">= 1"),
        (ControlNet, "scale", -1.0, ">= 0"),
        (Run, "slice_batch_size", 0, ">= 1"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(group, option, value, names) -> None:
    with pytest.raises(ValueError, match=names):
        group(**{option: value})


def test_noise_scale_moves_the_result_away_from_its_twin_and_zero_is_the_twin(fast) -> None:
    plain = edit(DiffusionLocalInpaint(**fast))
    assert torch.equal(plain, edit(DiffusionLocalInpaint(**fast, options=InpaintOptions(noise=Noise(scale=0.0)))))
    distance = [
        float((edit(DiffusionLocalInpaint(**fast, options=InpaintOptions(noise=Noise(scale=g)))) - plain).abs().mean())
        for g in (0.2, 0.6, 1.0)
    ]
    assert 0 < distance[0] < distance[1] < distance[2]


def test_inverted_noise_at_guidance_one_gives_the_image_back_and_random_noise_does_not(monkeypatch) -> None:
    decode, decoded = Inpainter.decode, []
    encode, encoded = Inpainter.encode, []
    monkeypatch.setattr(Inpainter, "decode", lambda self, z: (decoded.append(z), decode(self, z))[1])
    monkeypatch.setattr(Inpainter, "encode", lambda self, x: (encoded.append(encode(self, x)), encoded[-1])[1])
    for source in ("inverted", "random"):
        edit(DiffusionLocalInpaint(num_inference_steps=6, guidance_scale=1.0, options=InpaintOptions(noise=Noise(source=source))))
    inside = encoded[0][:1] != encoded[0][1:]  # where the masked image differs
    inverted, random = (float((latents - encoded[0][:1])[inside].abs().mean()) for latents in decoded)
    assert inverted < 0.25 * random


def test_outside_the_guidance_interval_a_step_costs_half(fast, monkeypatch) -> None:
    evaluate, sizes = LeanUnet.__call__, []
    monkeypatch.setattr(LeanUnet, "__call__", lambda self, z, t, c: (sizes.append(len(c)), evaluate(self, z, t, c))[1])
    edit(DiffusionLocalInpaint(**{**fast, "num_inference_steps": 4}, options=InpaintOptions(guidance_interval=(0.25, 0.75))))
    assert sizes == [1, 2, 2, 1]


def test_an_autocast_around_an_edit_changes_nothing(fast) -> None:
    expected = edit(DiffusionLocalInpaint(**fast))
    with torch.autocast("cpu", torch.bfloat16):
        inside = edit(DiffusionLocalInpaint(**fast))
    assert torch.equal(inside, expected)


def test_a_soft_width_in_mm_is_as_wide_on_every_grid(fast) -> None:
    reach = []
    for spacing_mm in (0.5, 1.0):
        affine = torch.diag(torch.tensor([spacing_mm, spacing_mm, 1.0, 1.0]))
        size = (round(70 / spacing_mm), round(90 / spacing_mm))
        mask = torch.zeros(1, *size)
        mask[:, round(30 / spacing_mm) : round(44 / spacing_mm), round(40 / spacing_mm) : round(52 / spacing_mm)] = 1
        transform = DiffusionLocalInpaint(**fast, options=InpaintOptions(soft_edge=SoftEdge(width_mm=2.0)))
        region = transform.soft_region(MetaTensor(picture(size), affine=affine), mask)
        rows = np.flatnonzero((region[0] > 0.05).any(1).numpy())
        reach.append((rows[-1] - rows[0] + 1) * spacing_mm - 14)
    assert reach[0] == pytest.approx(reach[1], abs=1.0) and 4 < reach[0] < 12


def test_a_controlnet_at_scale_zero_changes_nothing_and_at_one_it_does(fast, controlnet) -> None:
    plain = edit(DiffusionLocalInpaint(**fast))
    off, on = (edit(DiffusionLocalInpaint(**fast, options=InpaintOptions(control=ControlNet(controlnet, scale=s)))) for s in (0.0, 1.0))
    assert torch.allclose(plain, off, atol=1e-4) and not torch.allclose(plain, on, atol=1e-2)


def test_the_controlnet_is_shown_the_control_image_that_is_given(fast, controlnet) -> None:
    transform = DiffusionLocalInpaint(**fast, options=InpaintOptions(control=ControlNet(controlnet)))
    blank, striped = torch.zeros(1, 70, 90), torch.zeros(1, 70, 90)
    striped[:, ::3] = 1
    assert not torch.allclose(edit(transform, control=blank), edit(transform, control=striped), atol=1e-3)
    data = {"image": picture(), "mask": square_mask(), "prompt": PROMPT, "edges": striped}
    by_key = DiffusionLocalInpaintd("image", options=InpaintOptions(control=ControlNet(controlnet, key="edges")), **fast).edit(data, seed=4)
    assert torch.equal(by_key["image"], edit(transform, control=striped))


def test_a_control_image_without_a_controlnet_is_refused(fast) -> None:
    with pytest.raises(ValueError, match=r"set options=InpaintOptions\(control=ControlNet"):
        edit(DiffusionLocalInpaint(**fast), control=torch.zeros(1, 70, 90))


def test_a_mix_of_prompts_lies_between_them_and_its_text_is_recorded(fast) -> None:
    transform = DiffusionLocalInpaint(**fast)
    one, two = "ultrasound of breast, malignant mass", "CT of brain, haemorrhage"
    pure = transform.apply(picture(), square_mask(), ((1.0, one), (0.0, two)), seed=4)
    mixed = transform.apply(picture(), square_mask(), [(0.5, one), (0.5, two)], seed=4)
    assert torch.allclose(pure.image, transform.apply(picture(), square_mask(), one, seed=4).image, atol=1e-3)
    assert not torch.allclose(mixed.image, pure.image, atol=1e-3)
    assert mixed.record["prompt"] == f"0.5 * {one} + 0.5 * {two}"


def test_a_hard_mask_on_a_nine_channel_model_is_encoded_once(fast, monkeypatch) -> None:
    encode, sizes = Inpainter.encode, []
    monkeypatch.setattr(Inpainter, "encode", lambda self, x: (sizes.append(len(x)), encode(self, x))[1])
    edit(DiffusionLocalInpaint(**fast, options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0))))
    edit(DiffusionLocalInpaint(**fast))
    assert sizes == [1, 2]


def test_a_control_image_is_shown_whatever_the_other_samples_of_its_batch_have(fast, controlnet) -> None:
    transform = DiffusionLocalInpaint(**fast, options=InpaintOptions(control=ControlNet(controlnet)))
    striped = torch.zeros(1, 70, 90)
    striped[:, ::3] = 1
    both = transform.apply_batch([picture()] * 2, [square_mask()] * 2, [PROMPT] * 2, None, [striped, None], seeds=[4, 4])
    for together, alone in zip(both, (edit(transform, control=striped), edit(transform)), strict=True):
        assert torch.allclose(together.image, alone, atol=1e-2)


def test_the_model_sees_what_lies_around_a_wide_soft_edge_in_mm(fast) -> None:
    mask = torch.zeros(1, 200, 200)
    mask[:, 90:100, 90:100] = 1
    image = MetaTensor(picture((200, 200)), affine=torch.diag(torch.tensor([0.5, 0.5, 1, 1], dtype=torch.float64)))
    # 10 px, so that 30 px on each side may change
    transform = DiffusionLocalInpaint(**fast, options=InpaintOptions(soft_edge=SoftEdge(width_mm=5.0)))
    sampled = transform.denoise_batch([image], [mask], [PROMPT], seeds=[4])[0]
    patch = sampled.outcome.patches[0]
    assert patch.hard[0, 0].max() == 0 and patch.hard[0, :, 0].max() == 0, "the square ends within the edge"
    assert int((patch.soft > 0).any(0).sum()) <= patch.roi.side - 2


def test_a_default_type_that_the_user_has_set_changes_nothing(fast) -> None:
    image, mask = picture(), square_mask()
    transform = DiffusionLocalInpaint(**fast)
    expected = transform.apply(image, mask, PROMPT, seed=4).image
    torch.set_default_dtype(torch.float64)
    try:
        got, region = transform.apply(image, mask, PROMPT, seed=4).image, transform.soft_region(image, mask)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, expected) and region.dtype == torch.float32


def test_bicubic_resampling_and_less_context_change_the_edit_and_nothing_outside_its_soft_mask(fast: dict[str, object]) -> None:
    image, mask = picture((160, 180)), torch.zeros(1, 160, 180)
    mask[:, 30:110, 40:100] = 1
    edits = []
    for region in (Region(least_context=None, resample="bilinear"), Region(least_context=None), Region(least_context=1.2)):
        transform = DiffusionLocalInpaint(**fast, options=InpaintOptions(region=region, soft_edge=SoftEdge(width_px_at_512=16)))
        result, soft = transform.apply(image, mask, PROMPT, seed=4).image, transform.soft_region(image, mask)
        assert torch.equal(result[soft == 0], image[soft == 0])
        edits.append(result)
    assert all(float((one - other)[mask > 0].abs().mean()) > 1e-3 for one, other in pairwise(edits))


def test_noise_gain_gives_the_embedded_model_more_fine_texture_and_another_solver_refuses_it(random_inpainter: str) -> None:
    def fine_texture(gain: float) -> float:
        transform = DiffusionLocalInpaint(guidance_scale=1.0, options=InpaintOptions(noise=Noise(gain=gain)))
        inside = edit(transform)[square_mask() > 0].view(14, 12)
        return float(inside.diff(dim=0).std() + inside.diff(dim=1).std())

    assert fine_texture(0.3) > 1.1 * fine_texture(0.0)
    transform = DiffusionLocalInpaint(with_scheduler(random_inpainter), options=InpaintOptions(noise=Noise(gain=0.3)))
    with pytest.raises(ValueError, match="got UniPCMultistepScheduler; use Noise"):
        edit(transform)


def with_scheduler(source: str) -> object:
    """A live pipeline with a multistep solver."""
    from diffusers import StableDiffusionInpaintPipeline, UniPCMultistepScheduler

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(source, safety_checker=None, local_files_only=True)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    return pipeline
