"""A small network that says from a candidate's latents where a finding is, so that a hopeless one need not be decoded.

MONAI's ``SegResNet`` on the inpainter's scaled latents; it learns to say what the full validator says of the decoded picture. Latents
mean something for one VAE only: the configuration carries a fingerprint of its encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.registry import ModelSpec, live_object, tiny_folder

__all__ = ["LatentScreen", "ScreenConfig", "ScreenNetwork", "load_latent_screen", "save_latent_screen", "vae_fingerprint"]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
RECIPE = "python -m monai_diffaug.training.embedded.train_latent_screen"


@dataclass(frozen=True)
class ScreenConfig:
    """Everything that ``config.json`` holds.

    Attributes:
        latent_channels: of the VAE.
        channels: width of the first level; it doubles at each further one.
        blocks_down, blocks_up: residual blocks of each level, downwards and upwards.
        norm_num_groups: groups of the normalisation.
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
        """Raises ValueError: other channels than the configuration's, or sides that cannot be halved as often as it has levels."""
        step = 2 ** (len(self.config.blocks_down) - 1)
        wanted, got = self.config.latent_channels, tuple(latents.shape)
        if len(got) != 4 or got[1] != wanted or got[2] % step or got[3] % step:
            raise ValueError(f"the latent screen takes (B, {wanted}, h, w) with h and w multiples of {step}, got {got}")
        logits: Tensor = self.net(latents)
        return logits


class LatentScreen:
    """A screening network, frozen, on one device.

    Args:
        network: scaled latents (B, C, h, w) -> logits (B, 1, h, w); a module is copied and frozen.
        device: where a module lives; a callable gets latents there.
        fingerprint: of the VAE that it was trained on, see ``vae_fingerprint``; "" is not checked.
        source: what messages call it.
    """

    def __init__(
        self, network: Callable[[Tensor], Any], device: torch.device | str = "cpu", *, fingerprint: str = "", source: str = "given"
    ) -> None:
        self.device = torch.device(device)
        self.network: Any = network
        if isinstance(network, nn.Module):
            self.network = deepcopy(network).to(self.device, torch.float32).eval().requires_grad_(False)
        self.fingerprint = fingerprint
        self.source = source
        self._fitting: WeakSet[Any] = WeakSet()

    def check_vae(self, vae: Any) -> None:
        """Raises ValueError: the VAE is not the one whose latents the network was trained on."""
        if not self.fingerprint or vae in self._fitting:
            return
        found = vae_fingerprint(vae)
        if not any(one == other for one, other in zip(found.split("-"), self.fingerprint.split("-"), strict=False)):
            raise ValueError(
                f"the latent screen ({self.source}) was trained on the latents of another VAE (fingerprint {self.fingerprint}, the "
                f"inpainter's is {found}); train one for this inpainter with {RECIPE} --inpainter FOLDER, or leave screen= out"
            )
        self._fitting.add(vae)

    @torch.no_grad()
    def predict(self, latents: Tensor) -> Tensor:
        """Probabilities (B, 1, h, w) float32 of scaled latents (B, C, h, w).

        Raises:
            ValueError: the network's answer has another shape.
        """
        given = latents.to(self.device, torch.float32)
        with torch.autocast(self.device.type, enabled=False):
            logits = self.network(given)
        wanted = (len(given), 1, *given.shape[-2:])
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the latent screen must answer latents {tuple(given.shape)} with logits {wanted}, got {got}")
        return logits.float().sigmoid()


def vae_fingerprint(vae: Any) -> str:
    """Two hashes of the encoder's weights, in float16 and in bfloat16: one of them stays when a VAE is loaded in another precision.

    The decoder may be trained on: the latents stay what they are.
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
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(network.config), indent=2) + "\n")
    save_file({name: value.to("cpu", torch.float16).contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS_FILE)


def load_latent_screen(spec: ModelSpec, device: torch.device | str = "cpu") -> LatentScreen:
    """The screen of a spec, frozen, on a device.

    Args:
        spec: source "tiny" (embedded), a folder as ``save_latent_screen`` writes it, or the handle of a live object: a
            ``LatentScreen``, a module or a callable from scaled latents to logits.
        device: where it shall live.

    Raises:
        ModelSourceError: the folder or a file in it is not there; says what to do.
        ValueError: the files are corrupt or of another architecture, or the live object cannot be called.
    """
    given = live_object(spec)
    if isinstance(given, LatentScreen):
        return given
    if given is not None:
        if not callable(given):
            raise ValueError(f"screen= must be a source string, a LatentScreen, a module or a callable, got {type(given).__name__}")
        return LatentScreen(given, device, source=type(given).__name__)
    folder = tiny_folder("latent_screen") if spec.source == "tiny" else Path(spec.source).expanduser()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelSourceError(
                f"{folder / name} is missing; a latent screen's folder holds {CONFIG_FILE} and {WEIGHTS_FILE} ({RECIPE} writes them); "
                "the embedded one is 'tiny'"
            )
    network = _load_folder(folder)
    return LatentScreen(network, device, fingerprint=network.config.vae_fingerprint, source=spec.source)


def _load_folder(folder: Path) -> ScreenNetwork:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
        for name in ("blocks_down", "blocks_up"):
            values[name] = tuple(values[name])
        network = ScreenNetwork(ScreenConfig(**values))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} is no configuration of a latent screen: {error!r}") from error
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS_FILE).items()})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is truncated or no safetensors file ({error}); copy it again") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder / WEIGHTS_FILE} does not fit {folder / CONFIG_FILE}: {reason}") from error
    return network
