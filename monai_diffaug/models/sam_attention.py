"""Attention with relative positions in SAM's image encoder by torch's fused kernel, equal to ``segment_anything``'s own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

__all__ = ["FusedAttention", "use_fused_attention"]

# Elements of the relative-position bias that are held at once, one head of one image at least: of a global block of ViT-B at 1024 px
# one of the twelve heads on a CPU (67 MB in float32 instead of 805 MB), all of them on a GPU.
LARGEST_BIAS_CPU = 2**22
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

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) tokens -> (B, H, W, C)."""
        count, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(count, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.reshape(3, count * self.num_heads, height * width, -1).unbind(0)
        mixed = self._biased(query, key, value, (height, width)) if self.use_rel_pos else self._attend(query, key, value, None)
        mixed = mixed.view(count, self.num_heads, height, width, -1).permute(0, 2, 3, 1, 4).reshape(count, height, width, -1)
        projected: Tensor = self.proj(mixed)
        return projected

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """(G, N, D) each, bias (G, N, N): the kernels want a batch and a head axis."""
        biases = None if bias is None else bias[None]
        return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=biases, scale=self.scale)[0]

    def _biased(self, query: Tensor, key: Tensor, value: Tensor, size_hw: tuple[int, int]) -> Tensor:
        height, width = size_hw
        tokens = height * width
        along_h, along_w = relative(self.rel_pos_h, height), relative(self.rel_pos_w, width)
        largest = LARGEST_BIAS_GPU if query.device.type == "cuda" else LARGEST_BIAS_CPU
        group = max(1, largest // tokens**2)
        mixed = []
        for q, k, v in zip(query.split(group), key.split(group), value.split(group), strict=True):
            grid = q.view(len(q), height, width, -1)
            of_rows = torch.einsum("ghwd,hkd->ghwk", grid, along_h).contiguous()
            of_columns = torch.einsum("ghwd,wkd->ghwk", grid, along_w).contiguous()
            bias = (of_rows[..., :, None] + of_columns[..., None, :]).view(len(q), tokens, tokens)
            mixed.append(self._attend(q, k, v, bias))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def relative(positions: Tensor, size: int) -> Tensor:
    """(size, size, D): the embedding of each pair of coordinates, from the table (L, D) of their differences.

    A table of another length is interpolated, as ``segment_anything`` does it.
    """
    if len(positions) != 2 * size - 1:
        positions = F.interpolate(positions.T[None], size=2 * size - 1, mode="linear")[0].T
    coordinates = torch.arange(size, device=positions.device)
    return positions[coordinates[:, None] - coordinates[None, :] + size - 1]


def use_fused_attention(sam: Sam) -> None:
    """Replace the attention of every block of the image encoder, in place; names and values of the weights stay."""
    from segment_anything.modeling.image_encoder import Attention

    for block in getattr(sam.image_encoder, "blocks", ()):
        if type(block.attn) is Attention:
            block.attn = FusedAttention(block.attn)
