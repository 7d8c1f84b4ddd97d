"""A small network that finds a finding in the latents of a candidate, so that candidates without one need not be decoded.

It is MONAI's ``SegResNet`` on the inpainter's scaled latents, trained to predict the full validator's result on the decoded picture.
Latents depend on the VAE, so the configuration contains a fingerprint of the VAE's encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from monai_diffaug.models.registry import ModelSpec, live_object
from monai_diffaug.models.sources import NETWORK_FILES, WEIGHTS_FILE, load_weights, locate, read_config, require_files, save_network

__all__ = ["LatentScreen", "ScreenConfig", "ScreenNetwork", "load_latent_screen", "save_latent_screen", "vae_fingerprint"]

RECIPE = "monai-diffaug train latent-screen"
NETWORK = "a latent screen"  # in messages


@dataclass(frozen=True)
class ScreenConfig:
    """Content of ``config.json``.

    Attributes:
        latent_channels: of the VAE.
        channels: width of the first level; it doubles from level to level.
        blocks_down, blocks_up: residual blocks per level, downwards and upwards.
        norm_num_groups: groups of the group normalisation.
        vae_fingerprint: of the VAE whose latents it was trained on; "" is not checked.
    """

    latent_channels: int = 4
    channels: int = 16
    blocks_down: tuple[int, ...] = (1, 2, 2)
    blocks_up: tuple[int, ...] = (1, 1)
    norm_num_groups: int = 4
    vae_fingerprint: str = ""


class ScreenNetwork(nn.Module):
    """Scaled latents (B, C, h, w) -> logits (B, 1, h, w) of "finding here"."""

    def __init__(self, config: ScreenConfig) -> None:
        super().__init__()
        from monai.networks.nets import SegResNet

        self.config = config
        self.net = SegResNet(
            spatial_dims=2,
            init_filters=config.channels,
            in_channels=config.latent_channels,
            out_channels=1,
            blocks_down=config.blocks_down,
            blocks_up=config.blocks_up,
            norm=("GROUP", {"num_groups": config.norm_num_groups}),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Raise ValueError for another number of channels, or sides that cannot be halved at each level."""
        step = 2 ** (len(self.config.blocks_down) - 1)
        channels, shape = self.config.latent_channels, tuple(latents.shape)
        if len(shape) != 4 or shape[1] != channels or shape[2] % step or shape[3] % step:
            raise ValueError(f"the latent screen takes (B, {channels}, h, w) with h and w multiples of {step}, got {shape}")
        logits: Tensor = self.net(latents)
        return logits


class LatentScreen:
    """A screening network, frozen, on one device.

    Args:
        network: scaled latents (B, C, h, w) -> logits (B, 1, h, w); a module is copied and frozen.
        device: of a module; a callable gets latents on it.
        fingerprint: of the VAE that it was trained on, see ``vae_fingerprint``; "" is not checked.
        source: its name in messages.
    """

    def __init__(
        self, network: Callable[[Tensor], Any], device: torch.device | str = "cpu", *, fingerprint: str = "", source: str = "live object"
    ) -> None:
        self.device = torch.device(device)
        self.network: Any = network
        if isinstance(network, nn.Module):
            self.network = deepcopy(network).to(self.device, torch.float32).eval().requires_grad_(False)
        self.fingerprint = fingerprint
        self.source = source
        self._fitting: WeakSet[Any] = WeakSet()

    def check_vae(self, vae: Any) -> None:
        """Raise ValueError unless the VAE is the one whose latents the network was trained on."""
        if not self.fingerprint or vae in self._fitting:
            return
        fingerprint = vae_fingerprint(vae)
        if not any(one == other for one, other in zip(fingerprint.split("-"), self.fingerprint.split("-"), strict=False)):
            raise ValueError(
                f"the latent screen ({self.source}) was trained on the latents of another VAE (fingerprint {self.fingerprint}, the "
                f"inpainter's is {fingerprint}); train one for this inpainter with {RECIPE} --inpainter FOLDER, or leave screen= out"
            )
        self._fitting.add(vae)

    @torch.no_grad()
    def predict(self, latents: Tensor) -> Tensor:
        """Probabilities (B, 1, h, w) float32 of scaled latents (B, C, h, w).

        Raises:
            ValueError: the network returns another shape.
        """
        latents = latents.to(self.device, torch.float32)
        with torch.autocast(self.device.type, enabled=False):
            logits = self.network(latents)
        shape = (len(latents), 1, *latents.shape[-2:])
        if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the latent screen must answer latents {tuple(latents.shape)} with logits {shape}, got {got}")
        return logits.float().sigmoid()


def vae_fingerprint(vae: Any) -> str:
    """Two hashes of the encoder's weights, in float16 and in bfloat16: one of them stays the same in any precision of the VAE.

    The decoder is not included: the latents do not depend on it.
    """
    digests = {torch.float16: hashlib.sha256(), torch.bfloat16: hashlib.sha256()}
    for part in ("encoder", "quant_conv"):
        module = getattr(vae, part, None)
        if module is None:
            continue
        for _, value in sorted(module.state_dict().items()):
            for dtype, digest in digests.items():
                digest.update(value.detach().to("cpu", dtype).contiguous().view(torch.int16).numpy().tobytes())
    return "-".join(digest.hexdigest()[:12] for digest in digests.values())


def save_latent_screen(network: ScreenNetwork, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` in float16."""
    save_network(asdict(network.config), network, folder)


def load_latent_screen(spec: ModelSpec, device: torch.device | str = "cpu") -> LatentScreen:
    """Load a frozen screen: "tiny" (embedded), a folder or hub id with the files of ``save_latent_screen``, or a live object.

    A live object is a ``LatentScreen``, a module or a callable from scaled latents to logits.

    Raises:
        ModelSourceError: the folder or a file in it is missing; the message says what to do.
        ValueError: corrupt files, weights that are missing or left over, or a live object that cannot be called.
    """
    live = live_object(spec)
    if isinstance(live, LatentScreen):
        return live
    if live is not None:
        if not callable(live):
            raise ValueError(f"screen= must be a source string, a LatentScreen, a module or a callable, got {type(live).__name__}")
        return LatentScreen(live, device, source=type(live).__name__)
    advice = f"a latent screen's folder holds {' and '.join(NETWORK_FILES)} ({RECIPE} writes them); the embedded one is 'tiny'"
    folder = locate("latent_screen", spec.source, advice)
    require_files(folder, NETWORK_FILES, advice)
    network = ScreenNetwork(read_config(folder, _config_of, NETWORK))
    load_weights(network, folder / WEIGHTS_FILE, NETWORK)
    return LatentScreen(network, device, fingerprint=network.config.vae_fingerprint, source=spec.source)


def _config_of(values: dict[str, Any]) -> ScreenConfig:
    return ScreenConfig(**{**values, **{name: tuple(values[name]) for name in ("blocks_down", "blocks_up")}})
