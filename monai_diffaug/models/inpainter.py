"""The text-guided inpainter: VAE, UNet, text encoder and scheduler of a diffusers Stable-Diffusion-type model."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count, takewhile
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
from monai_diffaug.models.registry import ModelSpec, live_object, shared_model, tiny_folder
from monai_diffaug.sampling.inpaint_latents import Denoiser

__all__ = ["Inpainter", "load_inpainter", "shared_inpainter"]

logger = logging.getLogger(__name__)

PARTS = {
    "vae": "vae/config.json",
    "unet": "unet/config.json",
    "text_encoder": "text_encoder/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
PROMPT_CACHE_SIZE = 256
BESIDE_TEXT = ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type")


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
        wanted = {name: value for name in BESIDE_TEXT if (value := getattr(self.unet.config, name, None)) is not None}
        if wanted:
            raise ValueError(
                f"the UNet wants more than a text: {wanted}. Models of the kind of Stable Diffusion 1.x and 2.x work, SDXL does not; an "
                "IP-Adapter is taken out of a pipeline by pipeline.unload_ip_adapter()"
            )
        reads, gives = self.unet.config.cross_attention_dim, self.text_encoder.config.hidden_size
        if isinstance(reads, int) and reads != gives:
            raise ValueError(f"the UNet reads text states of width {reads}, the text encoder gives {gives}: they are of different models")

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
        states = {text: kept for text in dict.fromkeys(prompts) if (kept := self._prompts.get(text)) is not None}
        missing = [text for text in dict.fromkeys(prompts) if text not in states]
        if missing:
            states.update(zip(missing, self._encoded(missing), strict=True))
        for text, state in states.items():  # the last used go to the end; another thread may have dropped some meanwhile
            self._prompts.pop(text, None)
            self._prompts[text] = state
        while len(self._prompts) > PROMPT_CACHE_SIZE:
            self._prompts.popitem(last=False)
        return torch.stack([states[text].to(self.device, self.dtype) for text in prompts])  # a live model may have been moved since

    def _encoded(self, texts: list[str]) -> Tensor:
        """Text states (B, L, D) as the text encoder gives them; the log names a text whose end does not fit.

        The tokenizer is asked in one way only: another padding would change it under the hands of other threads.
        """
        limit = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        full = [_with_all_vectors(text, self.tokenizer.added_tokens_encoder) for text in texts]
        tokens = self.tokenizer(full, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        for text, encoding in zip(full, tokens.encodings or (), strict=False):  # tokenizers written in Python have none
            if encoding.overflowing:
                logger.warning("the model reads the first %d tokens of this prompt, not its end: %s", limit, text)
        states: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return states

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


def _with_all_vectors(text: str, added: Mapping[str, int]) -> str:
    """Textual inversions of several vectors written out, as diffusers' pipelines do: "<a>" is read as "<a> <a>_1 <a>_2"."""
    for token in added:
        more = list(takewhile(added.__contains__, (f"{token}_{i}" for i in count(1))))
        if more and token in text and more[0] not in text:
            text = text.replace(token, " ".join([token, *more]))
    return text


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


def shared_inpainter(spec: ModelSpec, device: torch.device | str) -> Inpainter:
    """The inpainter of a spec, loaded once a process (``shared_model``).

    Of a live pipeline its parts as they are now: between two edits another scheduler, a LoRA or a textual inversion may have come into it.
    """
    shared = shared_model(spec, device, load_inpainter)
    live = live_object(spec)
    if live is None or live is shared:
        return shared
    if any(getattr(live, name, None) is not getattr(shared, name) for name in PARTS):
        changed = load_inpainter(spec, shared.device)
        for name in PARTS:
            setattr(shared, name, getattr(changed, name))
    shared.forget_prompts()
    return shared


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
