"""The inpainters that are timed: the embedded one with its weights, two larger ones with random weights."""

from __future__ import annotations

from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.sampling.inpaint_latents import Denoiser

__all__ = ["embedded", "in_precision", "instant", "medium", "stable_diffusion", "with_scheduler", "with_tiny_vae"]

# the sizes that the published configurations of Stable Diffusion 1.5 (inpainting) name
SD_WIDTHS = (320, 640, 1280, 1280)
SD_VAE_WIDTHS = (128, 256, 512, 512)
SD_TEXT_WIDTH, SD_TEXT_LAYERS, SD_TEXT_HEADS, SD_TEXT_MLP, SD_TOKENS = 768, 12, 12, 3072, 77
SD_VAE_SCALE = 0.18215
TINY_VAE_WIDTH, TINY_VAE_BLOCKS = 64, 3  # of the published AutoencoderTiny (TAESD): its width and its blocks a size


def embedded(device: torch.device) -> Inpainter:
    """The embedded model, trained, of its own (not the one that transforms share)."""
    return load_inpainter(ModelSpec("inpainter"), device)


def medium(device: torch.device) -> Inpainter:
    """A UNet of 25 million random weights between the embedded VAE and text encoder.

    Speed does not depend on the values of weights.
    """
    from diffusers import UNet2DConditionModel

    small = embedded(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=32,
            in_channels=9,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(96, 192, 288),
            layers_per_block=1,
            cross_attention_dim=small.unet.config.cross_attention_dim,
            attention_head_dim=6,
            norm_num_groups=16,
        )
    return Inpainter(small.vae, unet.to(device), small.text_encoder, small.tokenizer, small.scheduler)


def stable_diffusion(device: torch.device) -> Inpainter:
    """An inpainter of the size of Stable Diffusion 1.5 with random weights in float32."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    small = embedded(torch.device("cpu"))
    tokenizer = deepcopy(small.tokenizer)
    tokenizer.model_max_length = SD_TOKENS
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=9,
            out_channels=4,
            block_out_channels=SD_WIDTHS,
            layers_per_block=2,
            cross_attention_dim=SD_TEXT_WIDTH,
            attention_head_dim=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=SD_VAE_WIDTHS,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=SD_VAE_SCALE,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=SD_TEXT_WIDTH,
                intermediate_size=SD_TEXT_MLP,
                num_hidden_layers=SD_TEXT_LAYERS,
                num_attention_heads=SD_TEXT_HEADS,
                max_position_embeddings=SD_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    return Inpainter(vae.to(device), unet.to(device), text_encoder.to(device), tokenizer, small.scheduler)


def in_precision(model: Inpainter, dtype: torch.dtype) -> Inpainter:
    """A copy of a model in another floating type."""
    vae, unet, text_encoder = (deepcopy(part).to(dtype) for part in (model.vae, model.unet, model.text_encoder))
    return Inpainter(vae, unet, text_encoder, model.tokenizer, model.scheduler)


def with_scheduler(model: Inpainter, scheduler: Any) -> Inpainter:
    """The same networks with another diffusers scheduler class, made from the configuration of theirs."""
    other = copy(model)
    other.scheduler = scheduler.from_config(model.scheduler.config)
    return other


def with_tiny_vae(model: Inpainter) -> Inpainter:
    """The same UNet between the two halves of an ``AutoencoderTiny`` with random weights, of the factor and channels of the model's VAE."""
    from diffusers import AutoencoderTiny

    sizes = model.factor.bit_length()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(TINY_VAE_WIDTH,) * sizes,
            decoder_block_out_channels=(TINY_VAE_WIDTH,) * sizes,
            num_encoder_blocks=(1, *(TINY_VAE_BLOCKS,) * (sizes - 1)),
            num_decoder_blocks=(*(TINY_VAE_BLOCKS,) * (sizes - 1), 1),
            latent_channels=model.vae.config.latent_channels,
        )
    return Inpainter(vae.to(model.device, model.dtype), model.unet, model.text_encoder, model.tokenizer, model.scheduler)


def instant(model: Inpainter) -> Inpainter:
    """A stand-in whose UNet and VAE answer at once with tensors of the right shape: what remains is the package's own time."""
    return _Instant(model.vae, model.unet, model.text_encoder, model.tokenizer, model.scheduler)


class _Instant(Inpainter):
    def encode(self, images: Tensor) -> Tensor:
        rows, _, height, width = images.shape
        return torch.zeros(rows, self.vae.config.latent_channels, height // self.factor, width // self.factor, device=self.device)

    def decode(self, latents: Tensor) -> Tensor:
        rows, _, height, width = latents.shape
        return torch.linspace(-1, 1, width * self.factor, device=self.device).expand(rows, 3, height * self.factor, -1)

    def denoiser(self) -> Denoiser:
        return lambda latents, timestep, context: torch.zeros_like(latents[:, : self.vae.config.latent_channels])
