"""The text-guided inpainter: VAE, UNet, text encoder and scheduler of a diffusers Stable-Diffusion-type model."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.compiled import compile_regions
from monai_diffaug.models.cuda_graphs import GraphedDenoiser
from monai_diffaug.models.lean_unet import lean_unet
from monai_diffaug.models.progress_bars import without_progress_bars
from monai_diffaug.models.registry import ModelSpec, live_object, tiny_folder
from monai_diffaug.sampling.inpaint import Denoiser

__all__ = ["Inpainter", "load_inpainter"]

PARTS = {
    "vae": "vae/config.json",
    "unet": "unet/config.json",
    "text_encoder": "text_encoder/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
PROMPT_CACHE_SIZE = 256


@dataclass
class Inpainter:
    """A loaded inpainting model on one device.

    Attributes:
        vae: diffusers AutoencoderKL (or AutoencoderTiny).
        unet: diffusers UNet2DConditionModel with 9 or 4 input channels.
        text_encoder: transformers CLIPTextModel.
        tokenizer: its tokenizer.
        scheduler: any diffusers scheduler; copied at each use.
        graphs: replays the UNet as CUDA graphs (``compile=True`` on a GPU); None calls it.
    """

    vae: Any
    unet: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    graphs: GraphedDenoiser | None = None
    _prompts: OrderedDict[str, Tensor] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        for name in ("vae", "unet", "text_encoder"):
            module: nn.Module = getattr(self, name)
            module.eval().requires_grad_(False)
        channels = self.unet.config.in_channels
        if channels not in (4, 9):
            raise ValueError(f"the UNet has {channels} input channels; an inpainter needs 9 (inpainting) or 4 (plain text-to-image)")

    @property
    def device(self) -> torch.device:
        return next(iter(self.unet.parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.unet.parameters())).dtype

    @property
    def vae_dtype(self) -> torch.dtype:
        """The VAE's floating type: pipelines in half precision often keep it in float32."""
        return next(iter(self.vae.parameters())).dtype

    @property
    def takes_mask(self) -> bool:
        """The UNet is given mask and masked image (9 channels)."""
        return bool(self.unet.config.in_channels == 9)

    @property
    def factor(self) -> int:
        """Pixels of an image per pixel of its latents."""
        config = self.vae.config
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        return int(2 ** (len(blocks) - 1))

    @property
    def size_px(self) -> int:
        """The image size the UNet was trained at."""
        return int(self.unet.config.sample_size) * self.factor

    @property
    def multiple_px(self) -> int:
        """An image's sides must be multiples of this."""
        return int(self.factor * 2 ** (len(self.unet.config.down_block_types) - 1))

    @property
    def scaling_factor(self) -> float:
        return float(self.vae.config.scaling_factor)

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Text states (B, L, D) on the UNet's device in its type; each text is encoded once and kept (the 256 last used)."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._prompts]
        if missing:
            tokens = self.tokenizer(
                missing,
                padding="max_length",
                max_length=min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings),
                truncation=True,
                return_tensors="pt",
            )
            states = self.text_encoder(tokens.input_ids.to(self.device))[0]
            self._prompts.update(zip(missing, states, strict=True))
        result = torch.stack([self._prompts[p].to(self.device, self.dtype) for p in prompts])  # a live model may have been moved since
        for prompt in prompts:
            self._prompts.move_to_end(prompt)
        while len(self._prompts) > PROMPT_CACHE_SIZE:
            self._prompts.popitem(last=False)
        return result

    def forget_prompts(self) -> None:
        """Drop the kept text states: after the text encoder's weights have changed."""
        self._prompts.clear()

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, H/f, W/f), the mode of the posterior: no noise is added."""
        encoded = self.vae.encode(self._laid_out(images.to(self.device, self.vae_dtype)))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        scaled: Tensor = latents * self.scaling_factor
        return scaled.to(self.dtype).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> (B, 3, H, W) float32, nominally in [-1, 1]."""
        unscaled = latents.to(self.device, self.vae_dtype) / self.scaling_factor
        decoded: Tensor = self.vae.decode(self._laid_out(unscaled), return_dict=False)[0]
        return decoded.float().contiguous()

    def _laid_out(self, images: Tensor) -> Tensor:
        """Channels last on a CPU, where the VAE's convolutions and doublings are a fifth faster in it; as they are elsewhere."""
        return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images

    def latent_mask(self, mask: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 1, H/f, W/f) by maximum, so that a 3x3 lesion never vanishes."""
        return F.max_pool2d(mask.to(self.device, self.dtype), self.factor)

    def denoiser(self) -> Denoiser:
        """The UNet for one run: what its steps and guidance branches share is computed once where the UNet's form allows it."""
        return self.graphs or lean_unet(self.unet) or self.denoise

    def denoise(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """One UNet call (the ``Denoiser`` interface of ``sampling.inpaint``)."""
        prediction: Tensor = self.unet(latents, timestep, encoder_hidden_states=context, return_dict=False)[0]
        return prediction


def load_inpainter(spec: ModelSpec, device: torch.device) -> Inpainter:
    """Load what a spec names.

    Args:
        spec: source "tiny", a local diffusers folder, a hub id "org/name" or "org/name@revision", or a live object:
            an ``Inpainter`` or a diffusers pipeline with the same parts.
        device: where the weights go.

    Raises:
        ModelSourceError: nothing loadable is there; the message names the missing file and the command that fetches it.
        ValueError: the parts do not fit together.
    """
    live = live_object(spec)
    if live is not None and spec.compile:
        raise ValueError("compile=True is for models that are loaded here; compile a live object yourself (monai_diffaug.models.compiled)")
    if isinstance(live, Inpainter):
        return live
    if live is not None:
        missing = [name for name in PARTS if getattr(live, name, None) is None]
        if missing:
            raise ValueError(f"model= got a {type(live).__name__} without {', '.join(missing)}; pass a diffusers pipeline or an Inpainter")
        parts = {name: getattr(live, name) for name in PARTS}
        for name in ("vae", "unet", "text_encoder"):
            parts[name].to(device)
        return Inpainter(**parts)
    if spec.source == "tiny":
        folder = tiny_folder("inpainter")
    elif Path(spec.source).expanduser().exists():
        folder = Path(spec.source).expanduser()
    else:
        folder = _hub_snapshot(spec.source)
    inpainter = _load_folder(folder, spec.torch_dtype, device)
    if spec.compile:
        for network in (inpainter.unet, inpainter.vae):
            compile_regions(network)
        if device.type == "cuda":
            inpainter.graphs = GraphedDenoiser(inpainter.denoise)
    return inpainter


def _load_folder(folder: Path, dtype: torch.dtype, device: torch.device) -> Inpainter:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    for part, file in PARTS.items():
        if not (folder / file).is_file() and not (part == "tokenizer" and (folder / "tokenizer/vocab.json").is_file()):
            raise ModelSourceError(
                f"{folder} is no diffusers model folder: {file} is missing. Expected the layout of "
                f"DiffusionPipeline.save_pretrained with {', '.join(PARTS)}; fetch one with: hf download ORG/NAME --local-dir {folder}"
            )
    tiny_vae = '"AutoencoderTiny"' in (folder / PARTS["vae"]).read_text()
    try:
        with without_progress_bars():
            vae = (AutoencoderTiny if tiny_vae else AutoencoderKL).from_pretrained(folder / "vae", torch_dtype=dtype, local_files_only=True)
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype, local_files_only=True)
            text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError, pickle.UnpicklingError) as error:
        fault = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"the weights under {folder} cannot be loaded ({fault}); fetch the folder again") from error
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    scheduler = _scheduler(folder / "scheduler")
    return Inpainter(vae.to(device), unet.to(device), text_encoder.to(device), tokenizer, scheduler)


def _scheduler(folder: Path) -> Any:
    """The scheduler class that the folder's config names, from diffusers."""
    import diffusers

    config: dict[str, Any] = json.loads((folder / "scheduler_config.json").read_text())
    name = config.get("_class_name", "DDIMScheduler")
    scheduler_class = getattr(diffusers, name, None)
    if scheduler_class is None:
        raise ValueError(f"{folder}: diffusers has no scheduler {name!r}")
    return scheduler_class.from_config(config)


def _hub_snapshot(source: str) -> Path:
    """Folder of a hub model: from the local cache when it is there, else downloaded unless HF_HUB_OFFLINE forbids it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    flag = f" --revision {revision}" if revision else ""
    wanted = [f"{part}/*" for part in PARTS] + ["model_index.json"]
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelSourceError(
            f"model {source!r} is not here: no such file or folder, and no hub id of the form org/name or org/name@revision. "
            "Use 'tiny' for the embedded model"
        )
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted, local_files_only=offline))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        state = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else f"the hub did not deliver it ({type(error).__name__})"
        raise ModelSourceError(f"model {source!r}: {state}. On a machine with network run: hf download {name}{flag}") from error
