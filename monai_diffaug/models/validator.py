"""One-step latent segmentation (SDSeg, Lin et al., MICCAI 2024) that checks an edit for its finding; any segmenter can replace it.

A frozen VAE (the inpainter's) encodes the mask, as a three-channel image in [-1, 1], to the target latents z0. A condition encoder
encodes the image; its features are concatenated to z_t, and a small UNet predicts z0 (``prediction_type="sample"``) or the noise
("epsilon"). Inference is one call at the last timestep. With "epsilon" an error there is multiplied by sqrt((1 - ab) / ab), which is
14.6 with Stable Diffusion's schedule. The default is therefore "sample" with a schedule of zero terminal SNR: z_T is pure noise in
training as at inference; otherwise z_T would still contain the target in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.errors import MissingExtraError
from monai_diffaug.models.bundle_network import is_bundle, load_bundle_network
from monai_diffaug.models.registry import ModelSpec, live_object, tiny_folder
from monai_diffaug.models.sources import (
    CONFIG_FILE,
    NETWORK_FILES,
    WEIGHTS_FILE,
    load_pretrained,
    load_weights,
    locate,
    read_config,
    require_files,
    save_network,
)

__all__ = ["TINY_CONFIG", "LatentSegmenter", "LatentValidator", "SegmenterValidator", "ValidatorModel", "load_validator", "save_validator"]

TINY_CONFIG: Mapping[str, Any] = {
    "size_px": 128,
    "latent_channels": 4,
    "latent_factor": 4,
    "prediction_type": "sample",
    "condition_unshuffle": 2,
    "contrast_views": [2.0, 8.0],
    "condition_channels": [16, 32],
    "condition_out_channels": 16,
    "unet_channels": [32, 64, 96],
    "norm_num_groups": 4,  # the narrowest layer has 16 channels: groups of one or two channels would lose the absolute brightness
}
VAE_FOLDER = "vae"
HUB_FILES = ((f"{VAE_FOLDER}/*", *NETWORK_FILES), ("configs/*", "models/model.pt"))  # the second is a MONAI Bundle
NETWORK = "a latent validator"  # in messages
NUM_TRAIN_TIMESTEPS = 1000
BLACK_AND_WHITE = (0.04, 0.96)  # grey levels of 1: outside lie background, bone and what the window cuts off
LEAST_SPREAD = 0.01  # noise of a nearly flat crop is not stretched further
BETA_RANGE = (0.00085, 0.012)  # Stable Diffusion's "scaled_linear" range


class ValidatorModel(Protocol):
    """Interface of the segmenter that a validating transform calls.

    Attributes:
        size_px: side of the square crops that ``predict`` needs; None means any.
    """

    size_px: int | None

    def predict(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Mask probabilities (B, 1, h, w) float32 of images (B, 3, h, w) in [-1, 1]; one CPU generator per image."""
        ...


def cumulative_alphas(zero_terminal_snr: bool) -> Tensor:
    """(1000,) float32: ab_t of Stable Diffusion's schedule.

    ``zero_terminal_snr`` rescales it to ab_T = 0 (Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed",
    algorithm 1).

    >>> [round(float(cumulative_alphas(zero)[-1]), 4) for zero in (False, True)]
    [0.0047, 0.0]
    """
    low, high = BETA_RANGE
    betas = torch.linspace(low**0.5, high**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    if zero_terminal_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).float()


def contrast_views(images: Tensor, widths: Sequence[float]) -> Tensor:
    """Images in narrower windows around their own tissue: (N, K, h, w) in (-1, 1).

    A bleed in a wide CT window is a few grey levels brighter than the brain. View k is tanh((v - m) / (w_k s)); v is the mean of the
    channels in [0, 1], m the median of the pixels that are neither black nor white and s their median absolute deviation, 0.01 or more.

    Args:
        images: (N, 3, h, w) in [-1, 1].
        widths: K widths w_k of the windows.

    >>> faint = torch.zeros(1, 3, 8, 8)
    >>> faint[..., :2] = 0.04
    >>> [round(float(view[0, 1]), 2) for view in contrast_views(faint, (1.0, 8.0))[0]]
    [0.96, 0.24]
    """
    grey = (images.float().mean(1, keepdim=True) + 1) / 2
    nothing = torch.tensor(float("nan"), device=grey.device)
    tissue = torch.where((grey > BLACK_AND_WHITE[0]) & (grey < BLACK_AND_WHITE[1]), grey, nothing).flatten(1)
    middle = tissue.nanmedian(1, keepdim=True).values
    spread = (tissue - middle).abs().nanmedian(1, keepdim=True).values.nan_to_num(1.0).clamp(min=LEAST_SPREAD)
    offset = grey - middle.nan_to_num(0.5)[..., None, None]
    return torch.cat([torch.tanh(offset / (width * spread[..., None, None])) for width in widths], 1)


class LatentSegmenter(nn.Module):
    """The trainable part: condition encoder and UNet on latents.

    The condition encoder sees the image and its ``contrast_views``.

    The condition encoder has the VAE encoder's blocks, but starts at half the resolution after a ``PixelUnshuffle``. The VAE
    encoder's architecture (16, 48, 96 channels at full resolution) takes 93 ms per sample forward and backward on one core, this
    whole network 37 ms, and in half an hour of training the former is not better. So the condition encoder is trained from scratch,
    not from the VAE's weights. ``condition_unshuffle=1`` with the VAE's channels gives the VAE encoder's architecture.

    Args:
        config: sizes, see ``TINY_CONFIG``.

    Raises:
        ValueError: unknown prediction type, or a condition encoder whose output is not on the latents' grid.
        MissingExtraError: diffusers is not installed.
    """

    def __init__(self, config: Mapping[str, Any] = TINY_CONFIG) -> None:
        super().__init__()
        try:
            from diffusers import UNet2DModel
            from diffusers.models.autoencoders.vae import Encoder
        except ImportError as error:
            raise MissingExtraError(f"the latent validator needs diffusers ({error}): pip install diffusers") from error

        if config["prediction_type"] not in ("sample", "epsilon"):
            raise ValueError(f"prediction_type must be 'sample' or 'epsilon', got {config['prediction_type']!r}")
        unshuffle, channels = int(config["condition_unshuffle"]), tuple(config["condition_channels"])
        reduction = unshuffle * 2 ** (len(channels) - 1)
        if reduction != config["latent_factor"]:
            raise ValueError(f"the condition encoder reduces by {reduction}, the VAE by {config['latent_factor']}; they must agree")
        self.config = dict(config)
        self.prediction_type: str = config["prediction_type"]
        latents, groups = int(config["latent_channels"]), int(config["norm_num_groups"])
        self.views: tuple[float, ...] = tuple(config.get("contrast_views", ()))
        self.unshuffle = nn.PixelUnshuffle(unshuffle)
        self.condition = Encoder(
            in_channels=(3 + len(self.views)) * unshuffle**2,
            out_channels=int(config["condition_out_channels"]),
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=1,
            norm_num_groups=groups,
            double_z=False,
            mid_block_add_attention=False,
        )
        self.unet: Any = UNet2DModel(
            sample_size=int(config["size_px"]) // int(config["latent_factor"]),
            in_channels=latents + int(config["condition_out_channels"]),
            out_channels=latents,
            block_out_channels=tuple(config["unet_channels"]),
            down_block_types=("DownBlock2D",) * len(config["unet_channels"]),
            up_block_types=("UpBlock2D",) * len(config["unet_channels"]),
            layers_per_block=1,
            norm_num_groups=groups,
            attention_head_dim=32,
        )
        self.register_buffer("alphas", cumulative_alphas(self.prediction_type == "sample"), persistent=False)

    alphas: Tensor

    def add_noise(self, z0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = sqrt(ab_t) z0 + sqrt(1 - ab_t) noise (Ho et al. 2020, equation 4); all (B, C, h, w), timesteps (B,) in [0, 999]."""
        alphas = self.alphas[timesteps][:, None, None, None]
        return alphas.sqrt() * z0 + (1 - alphas).sqrt() * noise

    def forward(self, images: Tensor, z_t: Tensor, timesteps: Tensor) -> Tensor:
        """Prediction (B, C, h, w) of z0 or of the noise.

        Args:
            images: (B, 3, factor * h, factor * w) in [-1, 1].
            z_t: (B, C, h, w) noisy scaled latents of the mask.
            timesteps: (B,) in [0, 999].
        """
        if self.views:
            images = torch.cat([images, contrast_views(images, self.views).to(images.dtype)], 1)
        condition = self.condition(self.unshuffle(images))
        prediction: Tensor = self.unet(torch.cat([z_t, condition], 1), timesteps).sample
        return prediction

    def z0_of(self, prediction: Tensor, z_t: Tensor, timesteps: Tensor) -> Tensor:
        """Estimate of z0: the prediction itself, or (z_t - sqrt(1 - ab) eps) / sqrt(ab)."""
        if self.prediction_type == "sample":
            return prediction
        alphas = self.alphas[timesteps][:, None, None, None]
        return (z_t - (1 - alphas).sqrt() * prediction) / alphas.sqrt()


def mask_latents(vae: Any, mask: Tensor) -> Tensor:
    """Scaled latents (B, C, h/f, w/f) of masks (B, 1, h, w) in [0, 1], encoded as three-channel images in [-1, 1]."""
    latents: Tensor = vae.encode((mask * 2 - 1).expand(-1, 3, -1, -1)).latent_dist.mode() * vae.config.scaling_factor
    return latents


class LatentValidator:
    """The trained one-step segmenter with its VAE; noise comes from the caller's generators, so verdicts are reproducible.

    Args:
        segmenter: the trained part; this object freezes and moves it.
        vae: the ``AutoencoderKL`` whose latents it was trained on.
        device: of both. The step runs in float32 whatever the spec's dtype, also inside ``torch.autocast``.
    """

    def __init__(self, segmenter: LatentSegmenter, vae: Any, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.segmenter = segmenter.to(self.device, torch.float32).eval().requires_grad_(False)
        self.vae = vae.to(self.device).float().eval().requires_grad_(False)
        self.size_px: int | None = int(segmenter.config["size_px"])

    @torch.no_grad()
    def predict(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Mask probabilities (B, 1, h, w) float32; > 0.5 where the decoded mask is > 0.

        Args:
            images: (B, 3, h, w) in [-1, 1]; h and w multiples of 4 times the VAE's factor.
            generators: one CPU generator per image, the source of its noise.
        """
        size = tuple(images.shape[-2:])
        step = self.segmenter.config["latent_factor"] * 2 ** (len(self.segmenter.config["unet_channels"]) - 1)
        if images.ndim != 4 or images.shape[1] != 3 or size[0] % step or size[1] % step:
            raise ValueError(f"images must be (B, 3, h, w) with h and w multiples of {step}, got {tuple(images.shape)}")
        if len(generators) != len(images):
            raise ValueError(f"{len(images)} images need as many generators, got {len(generators)}")
        factor, channels = self.segmenter.config["latent_factor"], self.segmenter.config["latent_channels"]
        shape = (channels, size[0] // factor, size[1] // factor)
        noise = torch.stack([torch.randn(shape, generator=g, dtype=torch.float32, device="cpu") for g in generators]).to(self.device)
        last = torch.full((len(images),), NUM_TRAIN_TIMESTEPS - 1, device=self.device)
        with torch.autocast(self.device.type, enabled=False):  # rounding to half precision would be amplified, too
            prediction = self.segmenter(images.to(self.device, torch.float32), noise, last)
            z0 = self.segmenter.z0_of(prediction, noise, last)
            decoded = self.vae.decode(z0 / self.vae.config.scaling_factor).sample
        probabilities: Tensor = ((decoded.mean(1, keepdim=True) + 1) / 2).clamp(0, 1)
        return probabilities


class SegmenterValidator:
    """Any segmenter as a validator.

    Args:
        model: a module that returns logits (B, K, h, w): sigmoid if K = 1, else one minus the softmax of channel 0 (background).
            It is copied and frozen, and gets images in its own dtype, and their channel mean if its first convolution takes one
            channel. Or a plain callable that returns probabilities (B, 1, h, w) of float32 images.
        device: of the module; a callable gets images on it.
    """

    def __init__(self, model: Callable[[Tensor], Any], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.size_px: int | None = None
        self.is_module = isinstance(model, nn.Module)
        self.model: Any = deepcopy(model).to(self.device).eval().requires_grad_(False) if isinstance(model, nn.Module) else model
        modules = list(model.modules()) if isinstance(model, nn.Module) else []
        self.grey = next((module.in_channels for module in modules if isinstance(module, nn.Conv2d)), 3) == 1
        weights = model.parameters() if isinstance(model, nn.Module) else ()
        self.dtype: torch.dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)

    @torch.no_grad()
    def predict(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Mask probabilities (B, 1, h, w) float32 of images (B, 3, h, w) in [-1, 1]; the generators are not used.

        Raises:
            ValueError: the model returns another shape, or a callable returns values outside [0, 1].
        """
        images = images.to(self.device, self.dtype)
        out = self.model(images.mean(1, keepdim=True) if self.grey else images)
        if isinstance(out, (tuple, list)) and out:  # deep supervision: the first item has the full resolution
            out = out[0]
        if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[0] != len(images) or out.shape[1] < 1:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the validator must answer images {tuple(images.shape)} with (B, K, h, w), got {got}")
        out = out.float()
        if self.is_module:
            out = out.sigmoid() if out.shape[1] == 1 else 1 - out.softmax(1)[:, :1]
        elif out.shape[1] != 1 or not bool(((out >= 0) & (out <= 1)).all()):
            raise ValueError("a callable validator must return probabilities (B, 1, h, w) in [0, 1]; wrap logits in a sigmoid")
        if out.shape[-2:] != images.shape[-2:]:
            out = F.interpolate(out, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return out


def save_validator(segmenter: LatentSegmenter, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` in float16 (not the VAE: it is the inpainter's)."""
    save_network(segmenter.config, segmenter, folder)


def load_validator(spec: ModelSpec, device: torch.device | str = "cpu") -> ValidatorModel:
    """Load a frozen validator: "tiny" (embedded), a folder or hub id, a MONAI Bundle (``load_bundle_network``), or a live object.

    A folder has the files of ``save_validator``, and its VAE in the folder ``vae``; without one the embedded inpainter's VAE is used.
    A live object is a module, a callable, or an object with ``predict`` and ``size_px``.

    Raises:
        ModelSourceError: the folder or a file in it is missing; the message says what to do.
        ValueError: corrupt files, weights that are missing or left over, or a live object that cannot be called.
    """
    live = live_object(spec)
    if live is not None:
        if hasattr(live, "predict") and hasattr(live, "size_px"):
            validator: ValidatorModel = live
            return validator
        if not callable(live):
            raise ValueError(f"a validator must be a source string, a torch module or a callable, got {type(live).__name__}")
        return SegmenterValidator(live, device)
    advice = "use model='tiny', a folder that 'monai-diffaug train validator --out FOLDER' wrote, or pass a network or a callable"
    folder = locate("validator", spec.source, advice, HUB_FILES)
    if is_bundle(folder):
        return SegmenterValidator(load_bundle_network(folder, trust_config=spec.trust_config), device)
    require_files(folder, NETWORK_FILES, advice)
    segmenter = read_config(folder, LatentSegmenter, NETWORK)
    load_weights(segmenter, folder / WEIGHTS_FILE, NETWORK)
    vae_folder = folder / VAE_FOLDER if (folder / VAE_FOLDER).is_dir() else tiny_folder("inpainter") / VAE_FOLDER
    vae = _load_vae(vae_folder)
    if vae.config.latent_channels != segmenter.config["latent_channels"]:
        raise ValueError(
            f"the VAE has {vae.config.latent_channels} latent channels, the validator at {folder} was trained on "
            f"{segmenter.config['latent_channels']}; put the VAE it was trained with in {folder / VAE_FOLDER}"
        )
    return LatentValidator(segmenter, vae, device)


def _load_vae(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    require_files(folder, (CONFIG_FILE,), "it is the validator's VAE: copy the inpainter's vae folder there")
    return load_pretrained(AutoencoderKL, folder)
