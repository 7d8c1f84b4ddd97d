"""The blocks of SAM's image encoder, equal to ``segment_anything``'s own, in less time and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from monai_diffaug.models.sam_attention import FusedAttention

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

__all__ = ["FusedBlock", "use_fused_blocks"]

MLP_TOKENS_CPU = 1024  # at once: the hidden layer of all 4096 of ViT-B takes 50 MB, which are fetched from the system anew each time


class FusedBlock(nn.Module):
    """A block with ``FusedAttention`` and without work for the padding of its windows; same weights under the same names.

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
        at_once = MLP_TOKENS_CPU if x.device.type == "cpu" else len(tokens)
        return x + torch.cat([self.mlp(some) for some in tokens.split(at_once)]).view_as(x)


def use_fused_blocks(sam: Sam) -> None:
    """Replace every block of the image encoder, in place; names and values of the weights stay."""
    from segment_anything.modeling.image_encoder import Block

    blocks: Any = getattr(sam.image_encoder, "blocks", ())
    for i, block in enumerate(blocks):
        if type(block) is Block:
            blocks[i] = FusedBlock(block)
