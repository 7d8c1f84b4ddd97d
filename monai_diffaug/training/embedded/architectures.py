"""The architectures of the embedded models, with random weights.

Those of MedSAM, validator and latent screen are next to their networks: ``models.medsam.TINY_CONFIG``, ``models.validator.TINY_CONFIG``
and the defaults of ``models.latent_screen.ScreenConfig``.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.training.embedded.text_encoder import build_text_encoder, build_tokenizer

__all__ = ["CONTROL_WIDTHS", "build_inpainter", "build_scheduler", "build_unet", "build_vae"]

CONTROL_WIDTHS = (8, 16, 32, 64)  # of a small ControlNet's embedding: edges are simple pictures, a quarter of diffusers' widths will do


def build_vae() -> Any:
    """AutoencoderKL of factor 4 with 4 latent channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,  # 4 channels per group: a group of one channel would lose each channel's mean, and colour with it
        sample_size=128,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def build_unet() -> Any:
    """UNet2DConditionModel with 9 channels in (latents, mask, masked latents) and 4 out."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=32,
        in_channels=9,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_scheduler() -> Any:
    """DDIM with v-prediction, zero terminal SNR and trailing timesteps (Lin et al., WACV 2024): mean brightness can be learned."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_inpainter(vae: Any, device: torch.device | str = "cpu") -> Inpainter:
    """UNet, text encoder, tokenizer and scheduler for an autoencoder of 4 latent channels."""
    with TemporaryDirectory() as folder:
        tokenizer = build_tokenizer(Path(folder))
    networks = (vae.to(device), build_unet().to(device), build_text_encoder(tokenizer).to(device))
    return Inpainter(*networks, tokenizer, build_scheduler())
