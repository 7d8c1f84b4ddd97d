"""The UNet without repeated work: equal to a call of the UNet, which is not changed."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from monai_diffaug.models import lean_unet as lean_unet_module
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.lean_unet import LeanUnet, lean_unet
from monai_diffaug.models.registry import ModelSpec

STEP = torch.tensor(300)


def unet(**options: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    defaults = {
        "sample_size": 16,
        "in_channels": 9,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 24, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 20,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    network: UNet2DConditionModel = UNet2DConditionModel(**{**defaults, **options}).eval().requires_grad_(False)
    return network


def texts(*rows: int) -> Tensor:
    """(B, 5, 20) text states, equal for equal numbers."""
    kinds = torch.randn(9, 5, 20, generator=torch.Generator().manual_seed(1))
    return kinds[list(rows)]


def latents(rows: int, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(rows, 9, height, width, generator=torch.Generator().manual_seed(2))


def plain_call(network: UNet2DConditionModel, x: Tensor, context: Tensor, step: Tensor = STEP) -> Tensor:
    repeated = torch.cat([x] * (len(context) // len(x)))
    result: Tensor = network(repeated, step, encoder_hidden_states=context, return_dict=False)[0]
    return result


def lean(network: UNet2DConditionModel) -> LeanUnet:
    evaluation = lean_unet(network)
    assert evaluation is not None
    return evaluation


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_linear_projection": True},
        {"layers_per_block": 2, "transformer_layers_per_block": 2},
        {"attention_head_dim": (2, 3, 4), "resnet_time_scale_shift": "scale_shift"},
        {
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        },
    ],
    ids=["embedded", "linear projection", "deep", "heads and scale_shift", "Stable Diffusion's order"],
)
@pytest.mark.parametrize("rows", [(0, 0, 1, 1), (0, 0, 1, 2), (3, 3, 3, 3)], ids=["one prompt", "two prompts", "prompt as negative"])
def test_a_guided_call_equals_the_unet_on_doubled_latents(options: dict[str, Any], rows: tuple[int, ...]) -> None:
    network, context = unet(**options), texts(*rows)
    assert_equal(lean(network)(latents(2), STEP, context), plain_call(network, latents(2), context))


def test_an_unguided_call_equals_the_unet() -> None:
    network, context = unet(), texts(0, 1, 1)
    assert_equal(lean(network)(latents(3), STEP, context), plain_call(network, latents(3), context))


@pytest.mark.parametrize("size", [(10, 10), (16, 14), (9, 13)])
def test_sizes_that_are_not_multiples_of_the_downsampling_equal_the_unet(size: tuple[int, int]) -> None:
    network, context = unet(), texts(0, 1)
    assert_equal(lean(network)(latents(1, *size), STEP, context), plain_call(network, latents(1, *size), context))


def test_each_step_uses_its_text_and_timestep_guided_or_not() -> None:
    network = unet()
    run, pair, single = lean(network), texts(0, 0, 1, 2), texts(1, 2)
    for step in (torch.tensor(900), torch.tensor(300), torch.tensor(1)):
        for context in (pair, single, pair):
            assert_equal(run(latents(2), step, context), plain_call(network, latents(2), context, step))


def test_the_keys_of_a_text_are_computed_once_per_run_and_prompt() -> None:
    network, rows = unet(), []
    projection = network.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    projection.register_forward_hook(lambda module, args, result: rows.append(len(args[0])))
    run, context = lean(network), texts(0, 0, 0, 1, 1, 1)
    for _ in range(3):
        run(latents(3), STEP, context)
    assert rows == [2]


def test_the_layers_before_the_first_cross_attention_run_for_one_branch() -> None:
    network, rows = unet(), []
    for module in (network.conv_in, network.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q, network.conv_out):
        module.register_forward_hook(lambda module, args, result: rows.append(len(args[0])))
    lean(network)(latents(3), STEP, texts(0, 0, 0, 1, 1, 1))
    assert rows == [3, 3, 6]


@pytest.mark.parametrize("limit", [0, lean_unet_module.COPIED_BYTES])
def test_weight_copies_stay_within_the_limit_and_do_not_change_the_result(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_unet_module, "COPIED_BYTES", limit)
    network, context = unet(), texts(0, 1)
    run = lean(network)
    for _ in range(2):
        assert_equal(run(latents(1), STEP, context), plain_call(network, latents(1), context))
    assert run._copied == sum(weight.nbytes for weight in run._weights.values()) <= limit
    assert bool(run._weights) == (limit > 0)


def test_the_weights_of_the_unet_are_not_changed() -> None:
    network = unet()
    before = {name: (value.data_ptr(), value._version, value.stride()) for name, value in network.named_parameters()}
    lean(network)(latents(1), STEP, texts(0, 1))
    assert before == {name: (value.data_ptr(), value._version, value.stride()) for name, value in network.named_parameters()}


def test_weights_that_change_between_runs_have_an_effect() -> None:
    network, context = unet(), texts(0, 1)
    lean(network)(latents(1), STEP, context)
    for name, weight in network.named_parameters():
        if "attn2.to_k" in name or "upsamplers" in name:
            weight.mul_(3.0)
    assert_equal(lean(network)(latents(1), STEP, context), plain_call(network, latents(1), context))


def test_lora_layers_of_the_unet_have_an_effect() -> None:
    peft = pytest.importorskip("peft")
    network, context = unet(), texts(0, 1)
    plain = plain_call(network, latents(1), context)
    network.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "ff.net.0.proj", "conv"]))
    network.eval().requires_grad_(False)
    expected = plain_call(network, latents(1), context)
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert_equal(lean(network)(latents(1), STEP, context), expected)


def hooked(network: UNet2DConditionModel) -> None:
    network.down_blocks[0].register_forward_hook(lambda module, args, result: result)


def replaced(network: UNet2DConditionModel) -> None:
    network.forward = lambda *args, **options: None


def compiled(network: UNet2DConditionModel) -> None:
    network.mid_block.attentions[0].transformer_blocks[0].compile(dynamic=False)


def other_attention(network: UNet2DConditionModel) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    network.set_attn_processor(AttnProcessor())


def free_u(network: UNet2DConditionModel) -> None:
    network.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def chunked(network: UNet2DConditionModel) -> None:
    for block in (module for module in network.modules() if hasattr(module, "set_chunk_feed_forward")):
        block.set_chunk_feed_forward(1, 1)


def fused(network: UNet2DConditionModel) -> None:
    network.fuse_qkv_projections()


@pytest.mark.parametrize("change", [hooked, replaced, compiled, other_attention, free_u, chunked, fused])
def test_a_changed_unet_is_not_evaluated_in_parts(change: Any) -> None:
    network = unet()
    assert lean_unet(network) is not None
    change(network)
    assert lean_unet(network) is None


def test_a_unet_with_a_replaced_forward_of_its_class_is_not_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = UNet2DConditionModel.forward

    @wraps(forward)
    def wrapper(*args: Any, **options: Any) -> Any:
        return forward(*args, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", wrapper)
    assert lean_unet(unet()) is None


@pytest.mark.parametrize(
    "options",
    [{"class_embed_type": "timestep"}, {"encoder_hid_dim": 12, "encoder_hid_dim_type": "text_proj"}, {"center_input_sample": True}],
)
def test_a_unet_with_conditions_other_than_text_is_not_evaluated_in_parts(options: dict[str, Any]) -> None:
    assert lean_unet(unet(**options)) is None
    assert lean_unet(nn.Conv2d(9, 4, 1)) is None


def test_the_embedded_model_is_evaluated_in_parts() -> None:
    model = load_inpainter(ModelSpec("inpainter"), torch.device("cpu"))
    run, context = model.denoiser(), model.encode_text(["", "", "a cyst", "a cyst"])
    assert isinstance(run, LeanUnet)
    with torch.no_grad():
        assert_equal(run(latents(2), STEP, context), model.denoise(torch.cat([latents(2)] * 2), STEP, context))
