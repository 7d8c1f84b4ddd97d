"""SAM's image encoder with fused attention: equal to that of ``segment_anything``, with less time and memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

__all__ = ["FusedAttention", "FusedBlock", "relative", "use_fused_blocks"]

# Elements of the relative-position bias in memory at a time (at least one row of queries of one head). For a global block of ViT-B at
# 1024 px this is 256 queries of one of the 12 heads on a CPU (4 MB in float32, which fit into its cache, instead of 805 MB), all on a GPU.
LARGEST_BIAS_CPU = 2**20
LARGEST_BIAS_GPU = 2**28
MLP_TOKENS_CPU = 1024  # per call: the hidden layer of all 4096 tokens of ViT-B takes 50 MB, newly allocated by the system each time


class FusedAttention(nn.Module):
    """Attention of a block of the image encoder: same weights and names, softmax(q k / sqrt(d) + bias) v in one kernel.

    The bias of a query at (y, x) and a key at (y', x') is q . R_h[y - y'] + q . R_w[x - x'] (Li et al. 2022, "MViTv2", equation 4).

    Args:
        attention: a ``segment_anything`` Attention, whose weights are shared.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        self.scale: float = attention.scale
        self.use_rel_pos: bool = attention.use_rel_pos
        self.qkv: nn.Module = attention.qkv
        self.proj: nn.Module = attention.proj
        if self.use_rel_pos:
            self.rel_pos_h: nn.Parameter = attention.rel_pos_h
            self.rel_pos_w: nn.Parameter = attention.rel_pos_w

    def forward(self, x: Tensor, window: int = 0) -> Tensor:
        """(B, H, W, C) tokens -> (B, H, W, C); with ``window`` a token attends only to its square of that side.

        Squares that exceed the image are filled with zero tokens, which take part in the attention as in ``segment_anything``.
        """
        count, height, width, channels = x.shape
        side_hw = (window, window) if window else (height, width)
        down, right = math.ceil(height / side_hw[0]), math.ceil(width / side_hw[1])
        padded_hw = (down * side_hw[0], right * side_hw[1])
        padding = self.qkv(x.new_zeros(channels)) if padded_hw != (height, width) else None
        parts = self.qkv(x).chunk(3, -1)
        filled = parts if padding is None else [_filled(part, *padded_hw, pad) for part, pad in zip(parts, padding.chunk(3), strict=True)]
        squares = (part.view(count, down, side_hw[0], right, side_hw[1], self.num_heads, -1) for part in filled)
        query, key, value = (square.permute(0, 1, 3, 5, 2, 4, 6).flatten(0, 3).flatten(1, 2) for square in squares)
        mixed = self._biased(query, key, value, side_hw) if self.use_rel_pos else self._attend(query, key, value, None)
        mixed = mixed.view(count, down, right, self.num_heads, *side_hw, -1).permute(0, 1, 4, 2, 5, 3, 6)
        projected: Tensor = self.proj(mixed.reshape(count, *padded_hw, channels)[:, :height, :width])
        return projected

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """(G, N, D) each, bias (G, N, N); the kernel needs a batch and a head axis."""
        biases = None if bias is None else bias[None]
        return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=biases, scale=self.scale)[0]

    def _biased(self, query: Tensor, key: Tensor, value: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Attention with bias, for some heads, or some rows of queries of one head, at a time."""
        height, width = size_hw
        tokens = height * width
        along_h, along_w = relative(self.rel_pos_h, height), relative(self.rel_pos_w, width)
        largest = LARGEST_BIAS_GPU if query.device.type == "cuda" else LARGEST_BIAS_CPU
        heads, rows = max(1, largest // tokens**2), max(1, largest // (tokens * width))
        mixed = []
        for q, k, v in zip(query.split(heads), key.split(heads), value.split(heads), strict=True):
            grid = q.unflatten(1, size_hw)
            of_rows = torch.einsum("ghwd,hkd->ghwk", grid, along_h)[..., :, None]
            of_columns = torch.einsum("ghwd,wkd->ghwk", grid, along_w)[..., None, :]
            for queries, by_row, by_column in zip(grid.split(rows, 1), of_rows.split(rows, 1), of_columns.split(rows, 1), strict=True):
                bias = (by_row + by_column).flatten(3).flatten(1, 2)
                mixed.append(self._attend(queries.flatten(1, 2), k, v, bias).flatten(0, 1))
        return torch.cat(mixed).view_as(query)


def _filled(x: Tensor, height: int, width: int, padding: Tensor) -> Tensor:
    """(B, H, W, C) on a larger grid, padded with copies of one token (C,)."""
    filled = padding.expand(len(x), height, width, -1).clone()
    filled[:, : x.shape[1], : x.shape[2]] = x
    return filled


def relative(positions: Tensor, size: int) -> Tensor:
    """(size, size, D): embedding of each pair of coordinates, from the table (L, D) of their differences.

    A table of another length is interpolated, as in ``segment_anything``.
    """
    if len(positions) != 2 * size - 1:
        positions = F.interpolate(positions.T[None], size=2 * size - 1, mode="linear")[0].T
    coordinates = torch.arange(size, device=positions.device)
    return positions[coordinates[:, None] - coordinates[None, :] + size - 1]


class FusedBlock(nn.Module):
    """A block with ``FusedAttention`` that does not compute the padding of its windows; same weights and names.

    Args:
        block: a ``segment_anything`` Block, whose parts are shared.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1: nn.Module = block.norm1
        self.attn = FusedAttention(block.attn)
        self.norm2: nn.Module = block.norm2
        self.mlp: nn.Module = block.mlp
        self.window_size: int = block.window_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) tokens -> (B, H, W, C)."""
        x = x + self.attn(self.norm1(x), self.window_size)
        tokens = self.norm2(x).flatten(0, 2)
        chunk_size = MLP_TOKENS_CPU if x.device.type == "cpu" else len(tokens)
        return x + torch.cat([self.mlp(chunk) for chunk in tokens.split(chunk_size)]).view_as(x)


def use_fused_blocks(sam: Sam) -> None:
    """Replace each block of the image encoder, in place; weights keep their names and values."""
    from segment_anything.modeling.image_encoder import Block

    blocks: Any = getattr(sam.image_encoder, "blocks", ())
    for i, block in enumerate(blocks):
        if type(block) is Block:
            blocks[i] = FusedBlock(block)
