"""The blocks of SAM's image encoder against ``segment_anything``'s own forward."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from monai_diffaug.models import sam_attention, sam_block
from monai_diffaug.models.sam_block import FusedBlock, use_fused_blocks
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


@pytest.mark.parametrize(("largest_bias", "mlp_tokens"), [(2**22, 1024), (3000, 60), (1, 1)])
def test_the_encoder_with_relative_positions_equals_segment_anything(
    largest_bias: int, mlp_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam_attention, "LARGEST_BIAS_CPU", largest_bias)
    monkeypatch.setattr(sam_block, "MLP_TOKENS_CPU", mlp_tokens)
    theirs = sam_with_positions(0.5)
    ours = deepcopy(theirs)
    use_fused_blocks(ours)
    assert all(type(block) is FusedBlock for block in ours.image_encoder.blocks)
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
    use_fused_blocks(moved)
    use_fused_blocks(still)
    assert (moved.image_encoder(pixels) - still.image_encoder(pixels)).abs().max() > 1e-2


def test_the_weights_keep_their_names_values_and_identity() -> None:
    sam = sam_with_positions(0.5)
    before = sam.state_dict(keep_vars=True)
    use_fused_blocks(sam)
    use_fused_blocks(sam)
    after = sam.state_dict(keep_vars=True)
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_no_work_is_done_for_the_padding_of_windows() -> None:
    sam = sam_with_positions(0.5)
    use_fused_blocks(sam)
    windowed = sam.image_encoder.blocks[0]
    seen: list[int] = []
    windowed.attn.qkv.register_forward_hook(lambda module, given, result: seen.append(given[0].numel() // 32))
    windowed.attn.proj.register_forward_hook(lambda module, given, result: seen.append(given[0].numel() // 32))
    windowed(torch.rand(2, 10, 10, 32))
    assert sorted(seen) == [1, 200, 200]  # two images of 100 tokens, of which the windows make 144; one token of zeros


def test_gradients_pass_through_the_blocks_as_through_segment_anything() -> None:
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
