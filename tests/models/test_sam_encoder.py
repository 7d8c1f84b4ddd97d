"""The fused image encoder of SAM against the forward of ``segment_anything``."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos, window_partition, window_unpartition

from monai_diffaug.models import sam_encoder
from monai_diffaug.models.sam_encoder import FusedAttention, FusedBlock, relative, use_fused_blocks
from monai_diffaug.models.sam_weights import TINY_CONFIG, build_sam

# a grid of 10 x 10 is no multiple of the window, so that windows are padded
CONFIG = {
    **TINY_CONFIG,
    "image_size": 80,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
    "global_attn_indexes": [1],
    "window_size": 4,
    "prompt_dim": 32,
    "mask_in_chans": 16,
    "decoder_mlp_dim": 32,
}


def sam_with_positions(spread: float) -> Any:
    torch.manual_seed(0)
    sam = build_sam(CONFIG)
    with torch.no_grad():
        for name, value in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                value.normal_(0, spread)
    return sam.eval().requires_grad_(False)


def test_attention_without_relative_positions_equals_segment_anything() -> None:
    torch.manual_seed(0)
    theirs = Attention(16, num_heads=4, use_rel_pos=False)
    tokens = torch.rand(2, 5, 7, 16)
    torch.testing.assert_close(FusedAttention(theirs)(tokens), theirs(tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [9, 15, 5])
def test_a_table_of_another_length_is_interpolated_as_segment_anything_does(length: int) -> None:
    table = torch.randn(length, 6)
    torch.testing.assert_close(relative(table, 5), get_rel_pos(5, 5, table))


def test_gradients_reach_the_relative_positions() -> None:
    torch.manual_seed(0)
    attention = FusedAttention(Attention(16, num_heads=4, use_rel_pos=True, input_size=(3, 4)))
    attention(torch.rand(2, 3, 4, 16)).square().sum().backward()
    assert attention.rel_pos_h.grad.abs().sum() > 0 and attention.rel_pos_w.grad.abs().sum() > 0


def positioned(height: int, width: int) -> Attention:
    torch.manual_seed(0)
    attention = Attention(16, num_heads=4, use_rel_pos=True, input_size=(height, width)).requires_grad_(False)
    attention.rel_pos_h.normal_()
    attention.rel_pos_w.normal_()
    return attention


@pytest.mark.parametrize("largest_bias", [2**20, 4 * 35 * 35, 35 * 35, 2 * 7 * 35, 1])
def test_the_bias_in_parts_equals_the_whole_bias(largest_bias: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_encoder, "LARGEST_BIAS_CPU", largest_bias)
    theirs, tokens = positioned(5, 7), torch.rand(2, 5, 7, 16)
    torch.testing.assert_close(FusedAttention(theirs)(tokens), theirs(tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size_hw", [(8, 8), (9, 6), (3, 10)])
def test_windows_equal_those_of_segment_anything(size_hw: tuple[int, int]) -> None:
    theirs, tokens = positioned(4, 4), torch.rand(2, *size_hw, 16)
    windows, padded = window_partition(tokens, 4)
    expected = window_unpartition(theirs(windows), 4, padded, size_hw)
    torch.testing.assert_close(FusedAttention(theirs)(tokens, window=4), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("largest_bias", "mlp_tokens"), [(2**22, 1024), (3000, 60), (1, 1)])
def test_the_encoder_with_relative_positions_equals_segment_anything(
    largest_bias: int, mlp_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam_encoder, "LARGEST_BIAS_CPU", largest_bias)
    monkeypatch.setattr(sam_encoder, "MLP_TOKENS_CPU", mlp_tokens)
    theirs = sam_with_positions(0.5)
    ours = deepcopy(theirs)
    use_fused_blocks(ours)
    assert all(type(block) is FusedBlock for block in ours.image_encoder.blocks)
    pixels = torch.rand(2, 3, 80, 80)
    torch.testing.assert_close(ours.image_encoder(pixels), theirs.image_encoder(pixels), atol=2e-5, rtol=2e-5)


def test_relative_positions_change_the_result() -> None:
    pixels = torch.rand(1, 3, 80, 80)
    trained = sam_with_positions(0.5)
    zeroed = deepcopy(trained)
    with torch.no_grad():
        for name, value in zeroed.named_parameters():
            if "rel_pos" in name:
                value.zero_()
    use_fused_blocks(trained)
    use_fused_blocks(zeroed)
    assert (trained.image_encoder(pixels) - zeroed.image_encoder(pixels)).abs().max() > 1e-2


def test_the_weights_keep_their_names_values_and_identity() -> None:
    sam = sam_with_positions(0.5)
    before = sam.state_dict(keep_vars=True)
    use_fused_blocks(sam)
    use_fused_blocks(sam)
    after = sam.state_dict(keep_vars=True)
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_the_padding_of_windows_is_not_computed() -> None:
    sam = sam_with_positions(0.5)
    use_fused_blocks(sam)
    windowed = sam.image_encoder.blocks[0]
    counts: list[int] = []
    windowed.attn.qkv.register_forward_hook(lambda module, args, result: counts.append(args[0].numel() // 32))
    windowed.attn.proj.register_forward_hook(lambda module, args, result: counts.append(args[0].numel() // 32))
    windowed(torch.rand(2, 10, 10, 32))
    assert sorted(counts) == [1, 200, 200]  # two images of 100 tokens (144 with padding); one token of zeros


def test_gradients_of_the_blocks_equal_those_of_segment_anything() -> None:
    theirs = sam_with_positions(0.5)
    ours = deepcopy(theirs)
    use_fused_blocks(ours)
    pixels = torch.rand(1, 3, 80, 80)
    for sam in (theirs, ours):
        sam.image_encoder.requires_grad_(True)
        sam.image_encoder(pixels).square().mean().backward()
    expected = {name: value.grad for name, value in theirs.image_encoder.named_parameters()}
    for name, value in ours.image_encoder.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], atol=1e-5, rtol=1e-3, msg=name)
