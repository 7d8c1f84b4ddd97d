"""Networks of the Medical Semantic Controller: one predicts the features under the mask, one lets the UNet attend to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.models.module_view import ModuleView

__all__ = ["SemanticAdapter", "SemanticConfig", "SemanticController", "attention_dims", "cross_attentions", "patch_mask"]

CROSS_ATTENTION = "attn2.processor"


@dataclass(frozen=True)
class SemanticConfig:
    """Content of ``config.json``.

    Attributes:
        attention_dims: inner width of each cross-attention of the UNet, in the order of ``unet.attn_processors``.
        feature_dim: width E of the image features.
        text_dim: width of the text states.
        encoder: source of the MedSAM whose features are used.
        encoder_fingerprint: of its weights; "" is not checked.
        grid: patches per side.
        width: width of the transformer.
        depth: its layers.
        heads: its attention heads.
        token_dim: width of the tokens that the UNet attends to.
    """

    attention_dims: tuple[int, ...]
    feature_dim: int
    text_dim: int
    encoder: str = "tiny"
    encoder_fingerprint: str = ""
    grid: int = 16
    width: int = 128
    depth: int = 4
    heads: int = 4
    token_dim: int = 128


def patch_mask(mask: Tensor, grid: int) -> Tensor:
    """(B, 1, h, w) in {0, 1} -> (B, grid * grid, 1): 1 for a patch with at least one masked pixel.

    >>> patch_mask(torch.eye(4)[None, None], 2).flatten().tolist()
    [1.0, 0.0, 0.0, 1.0]
    """
    return F.adaptive_max_pool2d(mask.float(), grid).flatten(2).transpose(1, 2)


class SemanticController(nn.Module):
    """Transformer over patch, global and text tokens that predicts the features under the mask (MedSoft-Diffusion 2025).

    Before training it returns the features of the masked image unchanged.
    """

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        width = config.width
        self.of_patches = nn.Linear(config.feature_dim, width)
        self.of_global = nn.Linear(config.feature_dim, width)
        self.of_text = nn.Linear(config.text_dim, width)
        self.mask_embedding = nn.Embedding(2, width)
        self.position = nn.Parameter(0.02 * torch.randn(config.grid**2, width))
        layer = nn.TransformerEncoderLayer(width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.to_patches = nn.Linear(width, config.feature_dim)
        self.to_global = nn.Linear(width, config.feature_dim)
        for head in (self.to_patches, self.to_global):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, patches: Tensor, pooled: Tensor, text: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the features of the unmasked image.

        Args:
            patches: (B, P, E) features of the masked image.
            pooled: (B, E) its global features.
            text: (B, L, D) text states.
            hidden: (B, P, 1) in {0, 1}, see ``patch_mask``.

        Returns:
            (B, P, E) and (B, E).
        """
        count = patches.shape[1]
        tokens = self.of_patches(patches) + self.position + self.mask_embedding(hidden[..., 0].long())
        states = self.layers(torch.cat([tokens, self.of_global(pooled)[:, None], self.of_text(text)], dim=1))
        return patches + self.to_patches(states[:, :count]), pooled + self.to_global(states[:, count])


class SemanticAdapter(nn.Module):
    """Projection of image tokens, and a key and a value map per cross-attention, with which the UNet attends to the tokens.

    The maps are diffusers' IP-Adapter attention processors (decoupled cross-attention, Ye et al. 2023). The value maps start at zero,
    so an untrained adapter does not change the UNet's output; zero tokens never do.
    """

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

        count = config.grid**2 + 1
        self.project = nn.Sequential(nn.Linear(config.feature_dim, config.token_dim), nn.LayerNorm(config.token_dim))
        self.position = nn.Parameter(0.02 * torch.randn(count, config.token_dim))
        self.processors = nn.ModuleList(
            IPAdapterAttnProcessor2_0(hidden_size=dim, cross_attention_dim=config.token_dim, num_tokens=(count,))
            for dim in config.attention_dims
        )
        for processor in self.processors:
            values: Any = processor.to_v_ip
            nn.init.zeros_(values[0].weight)

    def forward(self, features: Tensor) -> Tensor:
        """Patch and global features (B, P + 1, E) -> tokens (B, P + 1, token_dim)."""
        tokens: Tensor = self.project(features) + self.position
        return tokens

    def attached_to(self, unet: Any) -> ModuleView:
        """A second UNet with the weights of the first, whose cross-attentions also attend to image tokens; the first is not changed.

        Raises:
            ValueError: the adapter was made for other cross-attentions, or a ``forward`` of the UNet was replaced.
        """
        from diffusers.models.embeddings import MultiIPAdapterImageProjection

        expected, widths = tuple(p.hidden_size for p in self.processors), attention_dims(unet)
        if expected != widths:
            raise ValueError(
                f"the semantic controller was made for a UNet with cross-attentions of widths {expected}, this one has {widths}; "
                "train one for this model: monai-diffaug train semantic-controller"
            )
        if unet.config.encoder_hid_dim_type is not None:
            raise ValueError(f"the UNet already takes {unet.config.encoder_hid_dim_type!r}; the semantic controller needs a plain one")
        names = cross_attentions(unet)
        view = ModuleView(unet, names)
        for name, processor in zip(names, self.processors, strict=True):
            view.module.get_submodule(name).set_processor(processor)
        view.module.encoder_hid_proj = MultiIPAdapterImageProjection([nn.Identity()])
        view.module.register_to_config(encoder_hid_dim_type="ip_image_proj")
        return view


def cross_attentions(unet: Any) -> list[str]:
    """Names of the cross-attentions of a diffusers UNet, in the order of ``unet.attn_processors``."""
    return [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith(CROSS_ATTENTION)]


def attention_dims(unet: Any) -> tuple[int, ...]:
    """Inner width of each cross-attention of a diffusers UNet."""
    return tuple(int(unet.get_submodule(name).to_k.out_features) for name in cross_attentions(unet))
