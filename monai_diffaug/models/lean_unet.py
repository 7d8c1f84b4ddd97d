"""Evaluate a diffusers UNet without repeating the work that the steps of a run and the two guidance branches share.

Keys and values of the text are the same in each step, and for all slices with the same prompt; before the first cross-attention both
guidance branches are equal; the time embedding is the same for all rows. On a CPU images have the channels-last layout, in which
they become tokens without a copy. The modules of the UNet are called, never changed; the result equals the UNet's up to rounding.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LeanUnet", "lean_unet"]

BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D"}
FREE_U = ("s1", "s2", "b1", "b2")
COPIED_BYTES = 64 * 2**20  # limit of the weights that are copied to another layout during a run
ABSENT = ("class_embedding", "add_embedding", "encoder_hid_proj", "time_embed_act")


def lean_unet(unet: Any) -> LeanUnet | None:
    """Evaluation of a UNet for one run; None if its architecture differs from Stable Diffusion 1.x and 2.x.

    It is also None for a UNet with hooks, compiled parts, other attention processors, FreeU, or conditions other than text.

    Args:
        unet: a diffusers ``UNet2DConditionModel``; read, not changed.
    """
    if type(unet).__name__ != "UNet2DConditionModel" or not _is_original(unet) or unet.config.center_input_sample:
        return None
    if any(getattr(unet, name, None) is not None for name in ABSENT) or unet.mid_block is None or not unet.conv_norm_out:
        return None
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        if type(block).__name__ not in BLOCKS or not _is_original(block) or any(getattr(block, name, None) for name in FREE_U):
            return None
        if not all(_plain_transformer(transformer) for transformer in getattr(block, "attentions", ())):
            return None
    return LeanUnet(unet)


def _is_original(module: nn.Module) -> bool:
    """Whether a module has no hooks, and diffusers' own ``forward``, neither compiled nor replaced."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return False
    file = getattr(getattr(type(module).forward, "__code__", None), "co_filename", "")
    return getattr(module, "_compiled_call_impl", None) is None and _of_diffusers(file)


@lru_cache
def _of_diffusers(file: str) -> bool:
    return "diffusers" in Path(file).parts


def _plain_transformer(transformer: Any) -> bool:
    if type(transformer).__name__ != "Transformer2DModel" or not transformer.is_input_continuous or not _is_original(transformer):
        return False
    return all(_plain_block(block) for block in transformer.transformer_blocks)


def _plain_block(block: Any) -> bool:
    if type(block).__name__ != "BasicTransformerBlock" or not _is_original(block):
        return False
    if block.norm_type != "layer_norm" or block.pos_embed is not None or block.only_cross_attention or hasattr(block, "fuser"):
        return False
    return block.attn2 is not None and block._chunk_size is None and all(map(_plain_attention, (block.attn1, block.attn2)))


def _plain_attention(attention: Any) -> bool:
    if type(attention.processor).__name__ != "AttnProcessor2_0" or not _is_original(attention) or attention.fused_projections:
        return False
    norms = (attention.spatial_norm, attention.group_norm, attention.norm_cross, attention.norm_q, attention.norm_k)
    return not any(norms) and not attention.residual_connection and attention.rescale_output_factor == 1.0


def _plain_residual(resnet: Any) -> bool:
    if type(resnet).__name__ != "ResnetBlock2D" or type(resnet.nonlinearity) is not nn.SiLU or not _is_original(resnet):
        return False
    return resnet.time_embedding_norm == "default" and not resnet.skip_time_act and resnet.upsample is None and resnet.downsample is None


class _Text(NamedTuple):
    """Text states (B, L, D), and the distinct ones among them (U, L, D): each is used for B / U consecutive rows."""

    states: Tensor
    distinct: Tensor


class LeanUnet:
    """Evaluation for one run (a ``Denoiser``); it caches the keys and values of the texts."""

    shares_latents = True

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self._texts: list[_Text] = []
        self._keys_values: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._weights: dict[int, Tensor] = {}
        self._copied = 0

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Latents (B, C, h, w) and text states (k B, L, D) -> prediction (k B, 4, h, w): all k branches have the same latents."""
        unet, text = self.unet, self._text(context)
        time = unet.time_embedding(unet.time_proj(timestep.reshape(1).to(latents.device)).to(latents.dtype))
        x = unet.conv_in(latents.contiguous(memory_format=torch.channels_last) if latents.device.type == "cpu" else latents)
        skips = [x]
        for block in unet.down_blocks:
            for resnet, transformer in _layers(block):
                x = self._residual(resnet, x, time)
                x = x if transformer is None else self._transformer(transformer, x, text)
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        x = self._residual(unet.mid_block.resnets[0], x, time)
        for transformer, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
            x = self._residual(resnet, self._transformer(transformer, x, text), time)
        for block in unet.up_blocks:
            for resnet, transformer in _layers(block):
                x = self._residual(resnet, torch.cat([x, _repeated(skips.pop(), len(x))], dim=1), time)
                x = x if transformer is None else self._transformer(transformer, x, text)
            for upsampler in block.upsamplers or ():
                x = _upsampled(upsampler, x, skips[-1].shape[-2:])
        prediction: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return _repeated(prediction, len(context))

    def _text(self, context: Tensor) -> int:
        """Index of the context among those of this run."""
        for index, text in enumerate(self._texts):
            if text.states is context:
                return index
        distinct, counts = torch.unique_consecutive(context, dim=0, return_counts=True)
        even = bool((counts == counts[0]).all())
        self._texts.append(_Text(context, distinct if even else context))
        return len(self._texts) - 1

    def _residual(self, resnet: Any, x: Tensor, time: Tensor) -> Tensor:
        """A residual block with in-place additions and no division by one; a block with options is called itself."""
        if not _plain_residual(resnet):
            result: Tensor = resnet(x, time)
            return result
        h = self._convolution(resnet.conv1, F.silu(resnet.norm1(x), inplace=True))
        h.add_(resnet.time_emb_proj(F.silu(time))[:, :, None, None])
        h = self._convolution(resnet.conv2, F.silu(resnet.norm2(h), inplace=True))
        h.add_(x if resnet.conv_shortcut is None else self._convolution(resnet.conv_shortcut, x))
        return h if resnet.output_scale_factor == 1.0 else h.div_(resnet.output_scale_factor)

    def _convolution(self, module: Any, x: Tensor) -> Tensor:
        """Convolve. On a CPU, 1x1 kernels run as a matrix product, and kernels with more values than the image use a cached channels-last
        copy of the weights, because PyTorch would change their layout at each call."""
        weight = getattr(module, "weight", None)
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not module._forward_hooks and not module._forward_pre_hooks
        if plain and weight is not None and weight.device.type == "cpu" and _of_single_pixels(module):
            return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), module.bias).permute(0, 3, 1, 2)
        if not plain or weight is None or weight.device.type != "cpu" or weight.numel() < x.numel():
            result: Tensor = module(x)
            return result
        if id(module) not in self._weights and self._copied + weight.nbytes <= COPIED_BYTES:
            self._copied += weight.nbytes
            self._weights[id(module)] = weight.contiguous(memory_format=torch.channels_last)
        weight = self._weights.get(id(module), weight)
        return F.conv2d(x, weight, module.bias, module.stride, module.padding, module.dilation, module.groups)

    def _transformer(self, transformer: Any, x: Tensor, text: int) -> Tensor:
        height, width = x.shape[-2:]
        linear = transformer.use_linear_projection
        h = transformer.norm(x)
        h = (h if linear else self._convolution(transformer.proj_in, h)).permute(0, 2, 3, 1).flatten(1, 2)
        h = transformer.proj_in(h) if linear else h
        for block in transformer.transformer_blocks:
            h = _self_attention(block.attn1, block.norm1(h)).add_(h)
            attended = self._attend(block.attn2, block.norm2(h), text)
            h = attended.add_(_repeated(h, len(attended)))
            h = _feed_forward(block.ff, block.norm3(h)).add_(h)
        h = (transformer.proj_out(h) if linear else h).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        h = h if linear else self._convolution(transformer.proj_out, h)
        return h.add_(_repeated(x, len(h)))

    def _attend(self, attention: Any, h: Tensor, text: int) -> Tensor:
        """Cross-attention of the tokens (B, S, C) to the texts: (k B, S, C)."""
        keys, values = self._keys_and_values(attention, text)
        rows = len(self._texts[text].states)
        queries = _repeated(attention.to_q(h), rows).reshape(len(keys), -1, attention.heads, keys.shape[-1]).transpose(1, 2)
        attended = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(rows, h.shape[1], -1)
        result: Tensor = attention.to_out[0](attended)
        return result

    def _keys_and_values(self, attention: Any, text: int) -> tuple[Tensor, Tensor]:
        """Keys and values, each (U, heads, L, d), computed once per run."""
        key = id(attention), text
        if key not in self._keys_values:
            distinct = self._texts[text].distinct
            keys, values = (
                projection(distinct).unflatten(-1, (attention.heads, -1)).transpose(1, 2).contiguous()
                for projection in (attention.to_k, attention.to_v)
            )
            self._keys_values[key] = keys, values
        return self._keys_values[key]


def _layers(block: Any) -> list[tuple[Any, Any]]:
    """(residual block, transformer or None) of a down or up block."""
    transformers = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return list(zip(block.resnets, transformers, strict=True))


def _of_single_pixels(module: nn.Conv2d) -> bool:
    return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0) and module.groups == 1


def _repeated(x: Tensor, rows: int) -> Tensor:
    """Repeat the rows for each guidance branch."""
    return x if len(x) == rows else torch.cat([x] * (rows // len(x)))


def _self_attention(attention: Any, h: Tensor) -> Tensor:
    """Attention among the tokens (B, S, C) of an image."""
    projections = (attention.to_q, attention.to_k, attention.to_v)
    queries, keys, values = (projection(h).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for projection in projections)
    result: Tensor = attention.to_out[0](F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))
    return result


def _upsampled(upsampler: Any, x: Tensor, size: torch.Size) -> Tensor:
    """Upsample to the size of the skip connection, which is not always twice the size."""
    result: Tensor = upsampler(x, None if size == torch.Size([2 * side for side in x.shape[-2:]]) else size)
    return result


def _feed_forward(network: Any, h: Tensor) -> Tensor:
    """Feed-forward network; value and gate of a GEGLU (Shazeer 2020) come from two products, so both are contiguous tensors."""
    first = network.net[0]
    if type(first).__name__ != "GEGLU" or type(first.proj) is not nn.Linear or first.proj.bias is None or not _is_original(first):
        result: Tensor = network(h)
        return result
    value, gate = (F.linear(h, w, b) for w, b in zip(first.proj.weight.chunk(2), first.proj.bias.chunk(2), strict=True))
    h = value.mul_(F.gelu(gate))
    for module in network.net[1:]:
        h = module(h)
    return h
