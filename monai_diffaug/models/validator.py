"""One-step latent segmentation (the SDSeg form) that says whether what was asked for is there; any segmenter can stand in.

A frozen VAE (the inpainter's) turns the mask, as a three-channel image in [-1, 1], into the target latents z0. A condition encoder
sees the image, its features are concatenated to z_t, and a small UNet predicts z0 (``prediction_type="sample"``) or the noise
("epsilon"). Inference is one call at the last timestep. With "epsilon" an error there is multiplied by
sqrt((1 - ab) / ab), 14.6 with Stable Diffusion's schedule, so the x0 form is the default, with a schedule of zero terminal SNR: z_T is
pure noise in training as at inference, else the target shines through it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.errors import MissingExtraError, ModelSourceError
from monai_diffaug.models.bundle_network import is_bundle, load_bundle_network
from monai_diffaug.models.registry import ModelSpec, live_object, tiny_folder

__all__ = [
    "TINY_CONFIG",
    "LatentSegmenter",
    "LatentValidator",
    "SegmenterValidator",
    "Validator",
    "load_validator",
    "save_validator",
]

TINY_CONFIG: Mapping[str, Any] = {
    "size_px": 128,
    "latent_channels": 4,
    "latent_factor": 4,
    "prediction_type": "sample",
    "condition_unshuffle": 2,
    "condition_channels": [16, 32],
    "condition_out_channels": 16,
    "unet_channels": [32, 64, 96],
    "norm_num_groups": 4,  # of the 16 narrowest channels: groups of one or two channels would lose the absolute brightness
}
CONFIG_FILE, WEIGHTS_FILE, VAE_FOLDER = "config.json", "model.safetensors", "vae"
NUM_TRAIN_TIMESTEPS = 1000
BETA_RANGE = (0.00085, 0.012)  # Stable Diffusion's "scaled_linear" range


class Validator(Protocol):
    """What the validating transform needs of a segmenter.

    Attributes:
        size_px: side of the square crops it wants; None means any.
    """

    size_px: int | None

    def predict(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Mask probabilities (B, 1, h, w) float32 of images (B, 3, h, w) in [-1, 1]; one CPU generator an image."""
        ...


def cumulative_alphas(zero_terminal_snr: bool) -> Tensor:
    """(1000,) float32: ab_t of Stable Diffusion's schedule, rescaled to ab_T = 0 if asked (Lin et al. 2023, algorithm 1)."""
    low, high = BETA_RANGE
    betas = torch.linspace(low**0.5, high**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    if zero_terminal_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).float()


class LatentSegmenter(nn.Module):
    """The trainable part: condition encoder and UNet on latents.

    The condition encoder is built of the VAE encoder's blocks; behind a ``PixelUnshuffle(condition_unshuffle)`` it starts at half
    the resolution. The VAE encoder's own shape (16, 48, 96 at full resolution) costs 93 ms a sample forward and backward on one
    core, this whole network 37 ms, and no half hour of training pays for the former; so it is trained from scratch, not started
    from the VAE's weights. ``condition_unshuffle=1`` with the VAE's channels gives that shape.

    Args:
        config: sizes, see ``TINY_CONFIG``.

    Raises:
        ValueError: unknown prediction type, or sizes that do not meet the latents' grid.
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
        self.unshuffle = nn.PixelUnshuffle(unshuffle)
        self.condition = Encoder(
            in_channels=3 * unshuffle**2,
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
        """z_t = sqrt(ab_t) z0 + sqrt(1 - ab_t) noise; all (B, C, h, w), timesteps (B,) in [0, 999]."""
        alphas = self.alphas[timesteps][:, None, None, None]
        return alphas.sqrt() * z0 + (1 - alphas).sqrt() * noise

    def forward(self, images: Tensor, z_t: Tensor, timesteps: Tensor) -> Tensor:
        """The prediction (B, C, h, w), of z0 or of the noise.

        Args:
            images: (B, 3, factor * h, factor * w) in [-1, 1].
            z_t: (B, C, h, w) noisy scaled latents of the mask.
            timesteps: (B,) in [0, 999].
        """
        condition = self.condition(self.unshuffle(images))
        prediction: Tensor = self.unet(torch.cat([z_t, condition], 1), timesteps).sample
        return prediction

    def z0_of(self, prediction: Tensor, z_t: Tensor, timesteps: Tensor) -> Tensor:
        """z0hat: the prediction itself, or (z_t - sqrt(1 - ab) eps) / sqrt(ab)."""
        if self.prediction_type == "sample":
            return prediction
        alphas = self.alphas[timesteps][:, None, None, None]
        return (z_t - (1 - alphas).sqrt() * prediction) / alphas.sqrt()


def mask_latents(vae: Any, mask: Tensor) -> Tensor:
    """Scaled latents (B, C, h/f, w/f) of masks (B, 1, h, w) in [0, 1], drawn as three-channel images in [-1, 1]."""
    latents: Tensor = vae.encode((mask * 2 - 1).expand(-1, 3, -1, -1)).latent_dist.mode() * vae.config.scaling_factor
    return latents


class LatentValidator:
    """The trained one-step segmenter with its VAE; noise comes from the caller's generators, so verdicts repeat.

    Args:
        segmenter: the trained part; owned, frozen and moved by this object.
        vae: the frozen ``AutoencoderKL`` whose latents it was trained on.
        device: where both live. The step runs in float32 whatever the spec's dtype, inside ``torch.autocast`` too.
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
            generators: one CPU generator an image, the source of its noise.
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
        with torch.autocast(self.device.type, enabled=False):  # a training loop's half precision would be multiplied too
            prediction = self.segmenter(images.to(self.device, torch.float32), noise, last)
            z0 = self.segmenter.z0_of(prediction, noise, last)
            decoded = self.vae.decode(z0 / self.vae.config.scaling_factor).sample
        probabilities: Tensor = ((decoded.mean(1, keepdim=True) + 1) / 2).clamp(0, 1)
        return probabilities


class SegmenterValidator:
    """Any segmenter as a validator.

    Args:
        model: a module whose output is logits (B, K, h, w): K = 1 sigmoid, K > 1 one minus the softmax of channel 0 (background);
            it is copied and frozen, and gets images in its own dtype, and the channel mean if its first convolution takes one
            channel. Or a plain callable that returns probabilities (B, 1, h, w) of float32 images.
        device: where the module lives; a callable gets images there.
    """

    def __init__(self, model: Callable[[Tensor], Any], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.size_px: int | None = None
        self.is_module = isinstance(model, nn.Module)
        self.model: Any = deepcopy(model).to(self.device).eval().requires_grad_(False) if isinstance(model, nn.Module) else model
        self.grey = self.is_module and self._input_channels() == 1
        weights = model.parameters() if isinstance(model, nn.Module) else ()
        self.dtype: torch.dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)

    def _input_channels(self) -> int:
        network: nn.Module = self.model
        convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
        first = next(convolutions, None)
        return first.in_channels if first is not None else 3

    @torch.no_grad()
    def predict(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Mask probabilities (B, 1, h, w) float32 of images (B, 3, h, w) in [-1, 1]; the generators are not used.

        Raises:
            ValueError: the model's answer has another shape, or a callable's is no probability.
        """
        images = images.to(self.device, self.dtype)
        out = self.model(images.mean(1, keepdim=True) if self.grey else images)
        if isinstance(out, (tuple, list)) and out:  # deep supervision: the first is the full resolution
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
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(segmenter.config, indent=2) + "\n")
    save_file(
        {name: value.to(torch.float16).contiguous() for name, value in segmenter.state_dict().items()},
        folder / WEIGHTS_FILE,
    )


def _load_vae(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    if not (folder / CONFIG_FILE).is_file():
        raise ModelSourceError(f"the validator's VAE is missing: no {folder / CONFIG_FILE}; copy the inpainter's vae folder there")
    try:
        vae: Any = AutoencoderKL.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    except Exception as error:  # diffusers raises whatever its readers raise
        raise ValueError(f"{folder} holds no readable AutoencoderKL: {str(error).strip().splitlines()[0]}") from error
    return vae


def _load_segmenter(folder: Path) -> LatentSegmenter:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelSourceError(
                f"{folder / name} is missing; a validator's folder holds {CONFIG_FILE} and {WEIGHTS_FILE} "
                f"(python -m monai_diffaug.training.embedded.train_validator writes them); the embedded one is 'tiny'"
            )
    try:
        segmenter = LatentSegmenter(json.loads((folder / CONFIG_FILE).read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} is no configuration of a latent validator: {error!r}") from error
    try:
        segmenter.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS_FILE).items()})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is truncated or no safetensors file ({error}); copy it again") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder / WEIGHTS_FILE} does not fit {folder / CONFIG_FILE}: {reason}") from error
    return segmenter


def load_validator(spec: ModelSpec, device: torch.device | str = "cpu") -> Validator:
    """The validator of a spec, frozen, on a device.

    Args:
        spec: source "tiny" (embedded), a folder as ``save_validator`` writes it (with its own ``vae`` folder, else the embedded
            inpainter's VAE is used), a MONAI Bundle's folder (its network, see ``load_bundle_network``), or the handle of a live
            object: a module, a callable, or something with ``predict``.
        device: where it shall live.

    Raises:
        ModelSourceError: the folder or a file in it is not there; says what to do.
        ValueError: the files are corrupt or of another architecture, or the live object cannot be called.
    """
    given = live_object(spec)
    if given is not None:
        if hasattr(given, "predict") and hasattr(given, "size_px"):
            validator: Validator = given
            return validator
        if not callable(given):
            raise ValueError(f"a validator must be a source string, a torch module or a callable, got {type(given).__name__}")
        return SegmenterValidator(given, device)
    folder = tiny_folder("validator") if spec.source == "tiny" else Path(spec.source).expanduser()
    if not folder.is_dir():
        raise ModelSourceError(
            f"no validator at {folder}; use model='tiny', a folder that 'monai-diffaug train validator --out {folder}' "
            "wrote, or pass a network or a callable"
        )
    if is_bundle(folder):
        return SegmenterValidator(load_bundle_network(folder), device)
    segmenter = _load_segmenter(folder)
    own_vae = folder / VAE_FOLDER
    vae = _load_vae(own_vae if own_vae.is_dir() else tiny_folder("inpainter") / VAE_FOLDER)
    if vae.config.latent_channels != segmenter.config["latent_channels"]:
        raise ValueError(
            f"the VAE has {vae.config.latent_channels} latent channels, the validator at {folder} was trained on "
            f"{segmenter.config['latent_channels']}; put the VAE it was trained with in {own_vae}"
        )
    return LatentValidator(segmenter, vae, device)
