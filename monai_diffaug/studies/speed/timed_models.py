"""Inpainters for the measurements: the embedded one, and two larger ones with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.sampling.inpaint_latents import Denoiser
from monai_diffaug.studies.speed.timed_edits import Amount

__all__ = ["EMBEDDED", "TimedModel", "embedded", "in_precision", "instant", "medium", "stable_diffusion", "timed_models"]
__all__ += ["with_scheduler", "with_tiny_vae"]

EMBEDDED = "embedded"
LARGE_SIZE_PX = 512
TINY_VAE_WIDTH, TINY_VAE_BLOCKS = 64, 3  # of the published AutoencoderTiny (TAESD): width, and blocks per resolution


class TimedModel(NamedTuple):
    """A model, the side of its slices, and for a model in half precision the same weights in float32."""

    name: str
    model: Inpainter
    size_px: int
    precise: Inpainter | None = None


def timed_models(device: torch.device, amount: Amount) -> Iterator[TimedModel]:
    """The embedded model at each size of the volumes, and the larger models."""
    model = embedded(device)
    for size_px, _ in amount.volumes:
        yield TimedModel(EMBEDDED, model, size_px)
    if amount.larger_models:
        yield TimedModel("25 M UNet", medium(device), amount.volumes[0][0])
    if amount.larger_models and device.type == "cuda":
        precise = stable_diffusion(device)
        yield TimedModel("Stable Diffusion 1.5 size", in_precision(precise, torch.bfloat16), LARGE_SIZE_PX, precise)


def embedded(device: torch.device) -> Inpainter:
    """The embedded model with its trained weights; a new copy, not the one that transforms share."""
    return load_inpainter(ModelSpec("inpainter"), device)


def medium(device: torch.device) -> Inpainter:
    """A UNet with 25 million random weights, and the embedded VAE and text encoder; the speed does not depend on the weights."""
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
    return _changed(small, unet=unet.to(device))


def stable_diffusion(device: torch.device) -> Inpainter:
    """An inpainter with the sizes of the published configurations of Stable Diffusion 1.5 (inpainting), random weights in float32."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    small = embedded(torch.device("cpu"))
    tokenizer = deepcopy(small.tokenizer)
    tokenizer.model_max_length = 77
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(sample_size=64, in_channels=9, out_channels=4, cross_attention_dim=768)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=0.18215,
        )
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
        text_encoder = CLIPTextModel(config)
    return Inpainter(vae.to(device), unet.to(device), text_encoder.to(device), tokenizer, small.scheduler)


def in_precision(model: Inpainter, dtype: torch.dtype) -> Inpainter:
    """A copy of a model in another floating type."""
    return _changed(model, **{name: deepcopy(getattr(model, name)).to(dtype) for name in ("vae", "unet", "text_encoder")})


def with_scheduler(model: Inpainter, scheduler: Any) -> Inpainter:
    """The same networks with another diffusers scheduler class, with the configuration of their scheduler."""
    return _changed(model, scheduler=scheduler.from_config(model.scheduler.config))


def with_tiny_vae(model: Inpainter) -> Inpainter:
    """The same UNet with an ``AutoencoderTiny`` of random weights, with the factor and the channels of the model's VAE."""
    from diffusers import AutoencoderTiny

    resolutions = model.factor.bit_length()
    blocks = (TINY_VAE_BLOCKS,) * (resolutions - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(TINY_VAE_WIDTH,) * resolutions,
            decoder_block_out_channels=(TINY_VAE_WIDTH,) * resolutions,
            num_encoder_blocks=(1, *blocks),
            num_decoder_blocks=(*blocks, 1),
            latent_channels=model.vae.config.latent_channels,
        )
    return _changed(model, vae=vae.to(model.device, model.dtype))


def instant(model: Inpainter) -> Inpainter:
    """A stand-in whose UNet and VAE take no time: the remaining time is that of the package's own code."""
    return _changed(model, kind=_Instant)


def _changed(model: Inpainter, kind: type[Inpainter] = Inpainter, **parts: Any) -> Inpainter:
    """A model with some parts replaced, and an empty cache of text states."""
    names = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
    return kind(**{name: parts.get(name, getattr(model, name)) for name in names})


class _Instant(Inpainter):
    def encode(self, images: Tensor) -> Tensor:
        rows, _, height, width = images.shape
        return torch.zeros(rows, self.vae.config.latent_channels, height // self.factor, width // self.factor, device=self.device)

    def decode(self, latents: Tensor) -> Tensor:
        rows, _, height, width = latents.shape
        return torch.linspace(-1, 1, width * self.factor, device=self.device).expand(rows, 3, height * self.factor, -1)

    def denoiser(self) -> Denoiser:
        return lambda latents, timestep, context: torch.zeros_like(latents[:, : self.vae.config.latent_channels])
