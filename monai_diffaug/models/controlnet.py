"""ControlNet: a trainable copy of the UNet's encoder that shows the frozen UNet a control image (Zhang et al., ICCV 2023)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.registry import ModelSpec, live_object, tiny_folder

__all__ = ["ControlledDenoiser", "build_controlnet", "check_fit", "control_factor", "load_controlnet"]

CONFIG = "config.json"
EMBEDDING_WIDTHS = (16, 32, 96, 256)  # diffusers' default; each entry after the first halves the control image
SHARED_SHAPE = ("block_out_channels", "layers_per_block", "cross_attention_dim", "down_block_types")


def build_controlnet(unet: Any, factor: int, *, widths: Sequence[int] = EMBEDDING_WIDTHS, in_channels: int | None = None) -> Any:
    """A ControlNet with the UNet's encoder weights and zero outputs: until it is trained it changes nothing.

    Args:
        unet: diffusers UNet2DConditionModel with 9 or 4 input channels.
        factor: pixels of the control image per latent pixel, a power of two, as the VAE's.
        widths: channels of the control image's embedding, as many as the factor needs are taken.
        in_channels: the UNet's (default), or 4: the network sees the latents but neither mask nor masked image, as diffusers'
            inpainting pipeline calls it.

    Returns:
        diffusers ControlNetModel.

    Raises:
        ValueError: a factor that is no power of two or that has too few widths, or other input channels.
    """
    from diffusers import ControlNetModel

    halvings = factor.bit_length() - 1
    if factor < 1 or factor != 2**halvings or halvings >= len(widths):
        raise ValueError(f"factor must be a power of two up to {2 ** (len(widths) - 1)} for the widths {tuple(widths)}, got {factor}")
    channels = int(unet.config.in_channels)
    if in_channels not in (None, 4, channels):
        raise ValueError(f"in_channels must be the UNet's {channels} or 4, got {in_channels}")
    network: Any = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(widths[: halvings + 1]))
    if in_channels in (None, channels):
        return network
    narrow: Any = ControlNetModel.from_config({**network.config, "in_channels": in_channels})
    weights = network.state_dict()
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :in_channels]
    narrow.load_state_dict(weights)
    return narrow


def load_controlnet(spec: ModelSpec, device: torch.device) -> Any:
    """Load what a spec names.

    Args:
        spec: source "tiny", a local folder (with ``config.json`` or a ``controlnet`` folder that has one), a hub id "org/name" or
            "org/name@revision", or a live ControlNetModel.
        device: where the weights go.

    Returns:
        diffusers ControlNetModel without gradients.

    Raises:
        ModelSourceError: nothing loadable is there; the message says what to do.
        ValueError: a live object that is no ControlNet, or damaged weights.
    """
    live = live_object(spec)
    if live is not None:
        if not hasattr(live, "controlnet_cond_embedding"):
            raise ValueError(f"controlnet= got a {type(live).__name__}; pass a diffusers ControlNetModel, a folder or a hub id")
        return live.to(device).eval().requires_grad_(False)
    if spec.source == "tiny":
        folder = tiny_folder("controlnet")
        if not (folder / CONFIG).is_file():
            raise ModelSourceError(
                f"this installation holds no embedded ControlNet ({folder / CONFIG} is missing); name a folder or a hub id, or train one: "
                "python -m monai_diffaug.training.embedded.train_controlnet --out runs/controlnet"
            )
        return _from_folder(folder, spec, device)
    folder = Path(spec.source).expanduser()
    if not folder.exists():
        return _from_hub(spec, device)
    inner = next((each for each in (folder, folder / "controlnet") if (each / CONFIG).is_file()), None)
    if inner is None:
        raise ModelSourceError(
            f"{folder} is no ControlNet folder: {CONFIG} is missing. Expected what ControlNetModel.save_pretrained writes"
        )
    return _from_folder(inner, spec, device)


def _from_folder(folder: Path, spec: ModelSpec, device: torch.device) -> Any:
    from diffusers import ControlNetModel

    try:
        network: Any = ControlNetModel.from_pretrained(folder, torch_dtype=spec.torch_dtype, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        fault = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"the ControlNet under {folder} cannot be loaded ({fault}); fetch the folder again") from error
    return network.to(device).eval().requires_grad_(False)


def _from_hub(spec: ModelSpec, device: torch.device) -> Any:
    """From the local cache when it is there, else downloaded unless HF_HUB_OFFLINE forbids it."""
    from diffusers import ControlNetModel

    name, _, revision = spec.source.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelSourceError(
            f"controlnet {spec.source!r} is not here: no such folder, and no hub id of the form org/name or org/name@revision"
        )
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        network: Any = ControlNetModel.from_pretrained(
            name, revision=revision or None, torch_dtype=spec.torch_dtype, local_files_only=offline
        )
    except (OSError, ValueError) as error:
        state = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else f"the hub did not deliver it ({type(error).__name__})"
        flag = f" --revision {revision}" if revision else ""
        raise ModelSourceError(f"controlnet {spec.source!r}: {state}. On a machine with network run: hf download {name}{flag}") from error
    return network.to(device).eval().requires_grad_(False)


def control_factor(controlnet: Any) -> int:
    """Pixels of the control image per latent pixel: each entry of the embedding's channels after the first halves it."""
    return int(2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1))


def check_fit(controlnet: Any, unet: Any) -> None:
    """Raise ValueError unless the ControlNet was made for a UNet of this shape."""
    for name in SHARED_SHAPE:
        ours, theirs = getattr(controlnet.config, name), getattr(unet.config, name)
        if _plain(ours) != _plain(theirs):
            raise ValueError(
                f"the ControlNet does not fit the UNet: {name} is {ours} there and {theirs} in the UNet; take one made for this model"
            )
    channels = controlnet.config.in_channels
    if channels not in (4, unet.config.in_channels):
        raise ValueError(f"the ControlNet takes {channels} input channels; this UNet can give it {unet.config.in_channels} or 4")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


class ControlledDenoiser:
    """A UNet with a ControlNet behind the ``Denoiser`` interface of ``sampling.inpaint``.

    Both branches of classifier-free guidance get the control: the text changes between them, the edges do not (EMIT-Diff).

    Args:
        model: the inpainter whose UNet is steered.
        controlnet: diffusers ControlNetModel that fits it, on the same device.
        control: (B, C, H, W) in [0, 1], C 1 or the network's, one for each row of the latents; resized when it is not ``factor``
            times the latents' size.
        scale: weight of the control; 0 is the plain UNet.
        context_tokens: how many tokens of the context the ControlNet is given, from the first; default all.

    Raises:
        ValueError: the ControlNet does not fit the UNet, or a control of another shape.
    """

    def __init__(
        self, model: Inpainter, controlnet: Any, control: Tensor, *, scale: float = 1.0, context_tokens: int | None = None
    ) -> None:
        check_fit(controlnet, model.unet)
        channels = int(controlnet.config.conditioning_channels)
        if control.ndim != 4 or control.shape[1] not in (1, channels):
            raise ValueError(f"control must be (B, C, H, W) with C 1 or {channels}, got {tuple(control.shape)}")
        self.model = model
        self.controlnet = controlnet
        first = next(iter(controlnet.parameters()))
        self.control = control.to(first.device, first.dtype).expand(-1, channels, -1, -1)
        self.scale = scale
        self.context_tokens = context_tokens

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """(k B, 4 or 9, h, w), timestep, (k B, L, D) -> (k B, 4, h, w), for any whole k."""
        if self.scale == 0:
            return self.model.denoise(latents, timestep, context)
        own = self.control.dtype  # a ControlNet in float32 serves a UNet in half precision, and the other way round
        residuals, middle = self.controlnet(
            latents[:, : self.controlnet.config.in_channels].to(own),
            timestep,
            encoder_hidden_states=context[:, : self.context_tokens].to(own),
            controlnet_cond=self._control_for(latents),
            conditioning_scale=self.scale,
            return_dict=False,
        )
        prediction: Tensor = self.model.unet(
            latents,
            timestep,
            encoder_hidden_states=context,
            down_block_additional_residuals=tuple(residual.to(latents.dtype) for residual in residuals),
            mid_block_additional_residual=middle.to(latents.dtype),
            return_dict=False,
        )[0]
        return prediction

    def _control_for(self, latents: Tensor) -> Tensor:
        rows, held = latents.shape[0], self.control.shape[0]
        if rows % held:
            raise ValueError(f"the control has {held} rows, the latents {rows}: expected a multiple; give one control image a slice")
        factor = control_factor(self.controlnet)
        size = (latents.shape[-2] * factor, latents.shape[-1] * factor)
        if tuple(self.control.shape[-2:]) != size:  # a ControlNet whose embedding shrinks by another factor than the VAE
            self.control = F.interpolate(self.control, size, mode="bilinear", antialias=True, align_corners=False)
        return self.control.repeat(rows // held, 1, 1, 1)
