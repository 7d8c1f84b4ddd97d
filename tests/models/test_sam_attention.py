"""The fused attention of SAM's image encoder against ``segment_anything``'s own forward."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos

from monai_diffaug.models import sam_attention
from monai_diffaug.models.sam_attention import FusedAttention, relative, use_fused_attention
from monai_diffaug.models.sam_weights import TINY_CONFIG, build_sam

# a grid of 10 x 10 is no multiple of the window: the padding of the windows takes part
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


@pytest.mark.parametrize("largest_bias", [2**22, 10**4, 1])
def test_the_encoder_with_relative_positions_equals_segment_anything(largest_bias: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_attention, "LARGEST_BIAS_CPU", largest_bias)
    theirs = sam_with_positions(0.5)
    ours = deepcopy(theirs)
    use_fused_attention(ours)
    assert all(type(block.attn) is FusedAttention for block in ours.image_encoder.blocks)
    pixels = torch.rand(2, 3, 80, 80)
    torch.testing.assert_close(ours.image_encoder(pixels), theirs.image_encoder(pixels), atol=2e-5, rtol=2e-5)


def test_the_relative_positions_matter_so_that_the_comparison_can_fail() -> None:
    pixels = torch.rand(1, 3, 80, 80)
    moved = sam_with_positions(0.5)
    still = deepcopy(moved)
    with torch.no_grad():
        for name, value in still.named_parameters():
            if "rel_pos" in name:
                value.zero_()
    use_fused_attention(moved)
    use_fused_attention(still)
    assert (moved.image_encoder(pixels) - still.image_encoder(pixels)).abs().max() > 1e-2


def test_the_weights_keep_their_names_values_and_identity() -> None:
    sam = sam_with_positions(0.5)
    before = sam.state_dict(keep_vars=True)
    use_fused_attention(sam)
    use_fused_attention(sam)
    after = sam.state_dict(keep_vars=True)
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


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
