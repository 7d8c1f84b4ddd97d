"""A small SAM of transformers, whose weights have other names than those of segment_anything."""

from __future__ import annotations

from typing import Any

import torch


def sam_of_transformers() -> Any:
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    torch.manual_seed(0)
    return SamModel(
        SamConfig(
            vision_config=SamVisionConfig(
                hidden_size=32,
                output_channels=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=64,
                patch_size=8,
                window_size=4,
                global_attn_indexes=[1],
                mlp_dim=64,
                num_pos_feats=16,
            ),
            prompt_encoder_config=SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8),
            mask_decoder_config=SamMaskDecoderConfig(hidden_size=32, mlp_dim=32, iou_head_hidden_dim=32),
        )
    ).eval()
