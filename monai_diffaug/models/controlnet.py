"""ControlNet: a trainable copy of the UNet's encoder that conditions the frozen UNet on a control image (Zhang et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.registry import ModelSpec, live_object
from monai_diffaug.models.sources import CONFIG_FILE, load_pretrained, locate, require_files

__all__ = ["ControlledDenoiser", "build_controlnet", "check_fit", "control_factor", "load_controlnet"]

# weights as one file, safe format first, or in parts
HUB_FILES = tuple((CONFIG_FILE, f"diffusion_pytorch_model{ending}") for ending in (".safetensors", ".bin", "*"))
EMBEDDING_WIDTHS = (16, 32, 96, 256)  # diffusers' default; each entry after the first halves the control image
SHARED_SHAPE = ("block_out_channels", "layers_per_block", "cross_attention_dim", "down_block_types")


def build_controlnet(unet: Any, factor: int, *, widths: Sequence[int] = EMBEDDING_WIDTHS, in_channels: int | None = None) -> Any:
    """Build a diffusers ControlNetModel with the UNet's encoder weights and zero outputs: untrained, it does not change the output.

    Args:
        unet: diffusers UNet2DConditionModel with 9 or 4 input channels.
        factor: pixels of the control image per latent pixel along one axis, a power of two, as the VAE's.
        widths: channels of the control image's embedding; the first log2(factor) + 1 are used.
        in_channels: the UNet's (default), or 4: the network gets the latents but neither mask nor masked image, as in diffusers'
            inpainting pipeline.

    Raises:
        ValueError: a factor that is not a power of two or that needs more widths, or other input channels.
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
    """Load a diffusers ControlNetModel without gradients: "tiny" (embedded), a local folder, a hub id, or a live ControlNetModel.

    A local folder has ``config.json``, or a folder ``controlnet`` with that file.

    Raises:
        ModelSourceError: no loadable model; the message says what to do.
        ValueError: a live object that is no ControlNet, damaged weights, or weights that are missing or left over.
    """
    live = live_object(spec)
    if live is not None:
        if not hasattr(live, "controlnet_cond_embedding"):
            raise ValueError(f"controlnet= got a {type(live).__name__}; pass a diffusers ControlNetModel, a folder or a hub id")
        return live.to(device).eval().requires_grad_(False)
    from diffusers import ControlNetModel

    advice = "use 'tiny' for the embedded one, or train one: monai-diffaug train controlnet --out FOLDER"
    folder = locate("controlnet", spec.source, advice, HUB_FILES)
    folder = folder / "controlnet" if (folder / "controlnet" / CONFIG_FILE).is_file() else folder
    require_files(folder, (CONFIG_FILE,), f"expected what ControlNetModel.save_pretrained writes; {advice}")
    network = load_pretrained(ControlNetModel, folder, torch_dtype=spec.torch_dtype)
    return network.to(device).eval().requires_grad_(False)


def control_factor(controlnet: Any) -> int:
    """Pixels of the control image per latent pixel: each channel width of the embedding after the first halves the image."""
    return int(2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1))


def check_fit(controlnet: Any, unet: Any) -> None:
    """Raise ValueError unless the ControlNet was made for a UNet of this architecture."""
    for name in SHARED_SHAPE:
        value, unet_value = getattr(controlnet.config, name), getattr(unet.config, name)
        if _plain(value) != _plain(unet_value):
            raise ValueError(
                f"the ControlNet does not fit the UNet: {name} is {value} there and {unet_value} in the UNet; take one made for this model"
            )
    channels = controlnet.config.in_channels
    if channels not in (4, unet.config.in_channels):
        raise ValueError(f"the ControlNet takes {channels} input channels; this UNet can give it {unet.config.in_channels} or 4")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


class ControlledDenoiser:
    """A UNet with a ControlNet behind the ``Denoiser`` interface of ``sampling.inpaint_latents``.

    Both branches of classifier-free guidance get the control image: they differ in the text only (EMIT-Diff).

    Args:
        model: the inpainter whose UNet is conditioned.
        controlnet: diffusers ControlNetModel that fits it, on the same device.
        control: (B, C, H, W) in [0, 1], C 1 or the network's, one per row of the latents; resized when it is not ``factor`` times
            the latents' size.
        scale: weight of the control; 0 is the plain UNet.

    Raises:
        ValueError: the ControlNet does not fit the UNet, or a control of another shape.
    """

    def __init__(self, model: Inpainter, controlnet: Any, control: Tensor, *, scale: float = 1.0) -> None:
        check_fit(controlnet, model.unet)
        channels = int(controlnet.config.conditioning_channels)
        if control.ndim != 4 or control.shape[1] not in (1, channels):
            raise ValueError(f"control must be (B, C, H, W) with C 1 or {channels}, got {tuple(control.shape)}")
        self.model = model
        self.controlnet = controlnet
        first = next(iter(controlnet.parameters()))
        self.control = control.to(first.device, first.dtype).expand(-1, channels, -1, -1)
        self.scale = scale

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """(k B, 4 or 9, h, w), timestep, (k B, L, D) -> (k B, 4, h, w), for any whole k."""
        if self.scale == 0:
            return self.model.denoise(latents, timestep, context)
        dtype = self.control.dtype  # of the ControlNet; the UNet's may be another one
        residuals, middle = self.controlnet(
            latents[:, : self.controlnet.config.in_channels].to(dtype),
            timestep,
            encoder_hidden_states=context.to(dtype),
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
        """Control images for all rows of the latents, at the size that the ControlNet needs."""
        rows, images = latents.shape[0], self.control.shape[0]
        if rows % images:
            raise ValueError(f"the control has {images} rows, the latents {rows}: expected a multiple; give one control image per slice")
        factor = control_factor(self.controlnet)
        size = (latents.shape[-2] * factor, latents.shape[-1] * factor)
        if tuple(self.control.shape[-2:]) != size:  # a ControlNet whose embedding shrinks by another factor than the VAE
            self.control = F.interpolate(self.control, size, mode="bilinear", antialias=True, align_corners=False)
        return self.control.repeat(rows // images, 1, 1, 1)
