"""The fused attention of SAM's image encoder against ``segment_anything``'s own forward."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos, window_partition, window_unpartition

from monai_diffaug.models import sam_attention
from monai_diffaug.models.sam_attention import FusedAttention, relative


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
def test_the_bias_in_parts_gives_what_the_whole_gives(largest_bias: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_attention, "LARGEST_BIAS_CPU", largest_bias)
    theirs, tokens = positioned(5, 7), torch.rand(2, 5, 7, 16)
    torch.testing.assert_close(FusedAttention(theirs)(tokens), theirs(tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size_hw", [(8, 8), (9, 6), (3, 10)])
def test_windows_are_those_of_segment_anything(size_hw: tuple[int, int]) -> None:
    theirs, tokens = positioned(4, 4), torch.rand(2, *size_hw, 16)
    windows, padded = window_partition(tokens, 4)
    expected = window_unpartition(theirs(windows), 4, padded, size_hw)
    torch.testing.assert_close(FusedAttention(theirs)(tokens, window=4), expected, atol=1e-6, rtol=1e-5)
