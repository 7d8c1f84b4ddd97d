"""Attention with relative positions in SAM's image encoder by torch's fused kernel, equal to ``segment_anything``'s own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FusedAttention", "relative"]

# Elements of the relative-position bias that are held at once, one row of queries of one head at least: of a global block of ViT-B at
# 1024 px 256 queries of one of the twelve heads on a CPU (4 MB in float32, which stay in its cache, instead of 805 MB), all on a GPU.
LARGEST_BIAS_CPU = 2**20
LARGEST_BIAS_GPU = 2**28


class FusedAttention(nn.Module):
    """The attention of an image encoder's block: same weights under the same names, softmax(q k / sqrt(d) + bias) v in one kernel.

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
        """(B, H, W, C) tokens -> (B, H, W, C); with ``window`` each attends to those of its own square of that side only.

        Squares that reach beyond the image hold tokens of zeros there, which are attended to as in ``segment_anything``.
        """
        count, height, width, channels = x.shape
        side_hw = (window, window) if window else (height, width)
        down, right = math.ceil(height / side_hw[0]), math.ceil(width / side_hw[1])
        padded_hw = (down * side_hw[0], right * side_hw[1])
        beyond = self.qkv(x.new_zeros(channels)) if padded_hw != (height, width) else None
        parts = self.qkv(x).chunk(3, -1)
        filled = parts if beyond is None else [_filled(part, *padded_hw, of) for part, of in zip(parts, beyond.chunk(3), strict=True)]
        squares = (part.view(count, down, side_hw[0], right, side_hw[1], self.num_heads, -1) for part in filled)
        query, key, value = (square.permute(0, 1, 3, 5, 2, 4, 6).flatten(0, 3).flatten(1, 2) for square in squares)
        mixed = self._biased(query, key, value, side_hw) if self.use_rel_pos else self._attend(query, key, value, None)
        mixed = mixed.view(count, down, right, self.num_heads, *side_hw, -1).permute(0, 1, 4, 2, 5, 3, 6)
        projected: Tensor = self.proj(mixed.reshape(count, *padded_hw, channels)[:, :height, :width])
        return projected

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """(G, N, D) each, bias (G, N, N): the kernels want a batch and a head axis."""
        biases = None if bias is None else bias[None]
        return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=biases, scale=self.scale)[0]

    def _biased(self, query: Tensor, key: Tensor, value: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """The bias of some heads, or of some rows of one head's queries, at a time."""
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
            for some, by_row, by_column in zip(grid.split(rows, 1), of_rows.split(rows, 1), of_columns.split(rows, 1), strict=True):
                bias = (by_row + by_column).flatten(3).flatten(1, 2)
                mixed.append(self._attend(some.flatten(1, 2), k, v, bias).flatten(0, 1))
        return torch.cat(mixed).view_as(query)


def _filled(x: Tensor, height: int, width: int, beyond: Tensor) -> Tensor:
    """(B, H, W, C) on a larger grid, with one token (C,) everywhere beyond."""
    filled = beyond.expand(len(x), height, width, -1).clone()
    filled[:, : x.shape[1], : x.shape[2]] = x
    return filled


def relative(positions: Tensor, size: int) -> Tensor:
    """(size, size, D): the embedding of each pair of coordinates, from the table (L, D) of their differences.

    A table of another length is interpolated, as ``segment_anything`` does it.
    """
    if len(positions) != 2 * size - 1:
        positions = F.interpolate(positions.T[None], size=2 * size - 1, mode="linear")[0].T
    coordinates = torch.arange(size, device=positions.device)
    return positions[coordinates[:, None] - coordinates[None, :] + size - 1]
