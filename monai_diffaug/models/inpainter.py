"""The text-guided inpainter: VAE, UNet, text encoder and scheduler of a diffusers Stable-Diffusion-type model."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.models.compiled import compile_regions
from monai_diffaug.models.cuda_graphs import GraphedDenoiser
from monai_diffaug.models.folder_slots import build_scheduler_of, check_slot
from monai_diffaug.models.lean_unet import lean_unet
from monai_diffaug.models.painting import Painting, read_paintings
from monai_diffaug.models.registry import ModelSpec, live_object, shared_model
from monai_diffaug.models.sources import load_pretrained, load_tokenizer, locate, require_files
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
HUB_FILES = (("model_index.json", *(f"{part}/*" for part in PARTS)),)
PROMPT_CACHE_SIZE = 256
OTHER_CONDITIONS = ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type", "time_cond_proj_dim")


@dataclass
class Inpainter:
    """A loaded inpainting model on one device.

    Attributes:
        vae: diffusers AutoencoderKL (or AutoencoderTiny).
        unet: diffusers UNet2DConditionModel with 9 or 4 input channels.
        text_encoder: transformers CLIPTextModel.
        tokenizer: its tokenizer.
        scheduler: any diffusers scheduler; copied at each use, as schedulers have a state.
        graphs: replays the UNet as CUDA graphs (``compile=True`` on a GPU); None calls the UNet itself.
        paintings: settings that the model paints best with, by modality; see ``monai_diffaug.models.painting``.

    Raises:
        ValueError: a UNet with other than 4 or 9 input channels, with conditions other than text, or made for another text encoder.
    """

    vae: Any
    unet: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    graphs: GraphedDenoiser | None = None
    paintings: Mapping[str, Painting] = field(default_factory=dict)
    _prompts: OrderedDict[str, Tensor] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        for name in ("vae", "unet", "text_encoder"):
            module: nn.Module = getattr(self, name)
            module.eval().requires_grad_(False)
        channels = self.unet.config.in_channels
        if channels not in (4, 9):
            raise ValueError(f"the UNet has {channels} input channels; an inpainter needs 9 (inpainting) or 4 (plain text-to-image)")
        conditions = {name: value for name in OTHER_CONDITIONS if (value := getattr(self.unet.config, name, None)) is not None}
        if conditions:
            raise ValueError(
                f"the UNet wants more than a text: {conditions}. Models of the kind of Stable Diffusion 1.x and 2.x work, SDXL and UNets "
                "with an embedded guidance scale (LCM) do not; an IP-Adapter is taken out of a pipeline by pipeline.unload_ip_adapter()"
            )
        if not isinstance(getattr(self.vae.config, "scaling_factor", None), (int, float)):
            raise ValueError(f"the VAE's scaling_factor must be a number, got {getattr(self.vae.config, 'scaling_factor', None)!r}")
        if not isinstance(self.tokenizer.model_max_length, int):
            raise ValueError(f"the tokenizer's model_max_length must be a whole number, got {self.tokenizer.model_max_length!r}")
        _ = self.size_px
        width, encoder_width = self.unet.config.cross_attention_dim, self.text_encoder.config.hidden_size
        if isinstance(width, int) and width != encoder_width:
            raise ValueError(
                f"the UNet reads text states of width {width}, the text encoder gives {encoder_width}: they are of different models"
            )

    @property
    def device(self) -> torch.device:
        """Device of the UNet."""
        return next(iter(self.unet.parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the UNet."""
        return next(iter(self.unet.parameters())).dtype

    @property
    def vae_dtype(self) -> torch.dtype:
        """Floating type of the VAE: pipelines in half precision often keep it in float32."""
        return next(iter(self.vae.parameters())).dtype

    @property
    def takes_mask(self) -> bool:
        """Whether the UNet takes mask and masked image (9 channels)."""
        return bool(self.unet.config.in_channels == 9)

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel, along one axis."""
        config = self.vae.config
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        return int(2 ** (len(blocks) - 1))

    @property
    def size_px(self) -> int:
        """Image side in pixels that the UNet was trained on.

        Raises:
            ValueError: the UNet's config says none, or an oblong one.
        """
        sample_size = self.unet.config.sample_size
        sides = set(sample_size) if isinstance(sample_size, (list, tuple)) else {sample_size}
        side = sides.pop() if len(sides) == 1 else None
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise ValueError(
                f"the UNet's sample_size must be the side of a square in latent pixels, got {sample_size!r}; set it in its config"
            )
        return side * self.factor

    @property
    def multiple_px(self) -> int:
        """Number of pixels of which the sides of an image must be multiples."""
        return int(self.factor * 2 ** (len(self.unet.config.down_block_types) - 1))

    @property
    def scaling_factor(self) -> float:
        """Factor from the VAE's latents to those that the UNet was trained on."""
        return float(self.vae.config.scaling_factor)

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Text states (B, L, D) on the UNet's device and in its type; the states of the last 256 texts are cached."""
        states = {text: cached for text in dict.fromkeys(prompts) if (cached := self._prompts.get(text)) is not None}
        missing = [text for text in dict.fromkeys(prompts) if text not in states]
        if missing:
            states.update(zip(missing, self._encoded(missing), strict=True))
        for text, state in states.items():  # the most recent go to the end; another thread may have dropped some since
            self._prompts.pop(text, None)
            self._prompts[text] = state
        while len(self._prompts) > PROMPT_CACHE_SIZE:
            self._prompts.popitem(last=False)
        return torch.stack([states[text].to(self.device, self.dtype) for text in prompts])  # a live model may have been moved since

    def _encoded(self, texts: list[str]) -> Tensor:
        """Text states (B, L, D) of the text encoder; a text that is too long is logged.

        All calls of the tokenizer have the same padding options: the options are a state of the tokenizer that threads share.
        """
        limit = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        full = [_with_all_vectors(text, self.tokenizer.added_tokens_encoder) for text in texts]
        tokens = self.tokenizer(full, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        if tokens.encodings is None:  # a tokenizer written in Python, as in version 4 of transformers
            end = self.tokenizer.num_special_tokens_to_add()
            are_cut = [len(self.tokenizer.tokenize(text)) + end > limit for text in full]
        else:
            are_cut = [bool(encoding.overflowing) for encoding in tokens.encodings]
        for text, is_cut in zip(full, are_cut, strict=True):
            if is_cut:
                logger.warning("the model reads the first %d tokens of this prompt, not its end: %s", limit, text)
        states: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return states

    def forget_prompts(self) -> None:
        """Empty the cache of text states, e.g. after the text encoder's weights have changed."""
        self._prompts.clear()

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, H/f, W/f): the mode of the VAE's posterior, so no random number is drawn."""
        encoded = self.vae.encode(_fast_layout(images.to(self.device, self.vae_dtype)))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        scaled: Tensor = latents * self.scaling_factor
        return scaled.to(self.dtype).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> (B, 3, H, W) float32, nominally in [-1, 1]."""
        unscaled = latents.to(self.device, self.vae_dtype) / self.scaling_factor
        decoded: Tensor = self.vae.decode(_fast_layout(unscaled), return_dict=False)[0]
        return decoded.float().contiguous()

    def latent_mask(self, mask: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 1, H/f, W/f) by max pooling, so that a lesion of 3x3 pixels does not vanish."""
        return F.max_pool2d(mask.to(self.device, self.dtype), self.factor)

    def denoiser(self) -> Denoiser:
        """UNet for one run; work that its steps and guidance branches share is done once if the UNet's architecture is known."""
        return self.graphs or lean_unet(self.unet) or self.denoise

    def denoise(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """One UNet call (the ``Denoiser`` interface of ``sampling.inpaint_latents``)."""
        prediction: Tensor = self.unet(latents, timestep, encoder_hidden_states=context, return_dict=False)[0]
        return prediction


def _fast_layout(images: Tensor) -> Tensor:
    """Channels last on a CPU, where the VAE's convolutions and upsampling are 20 % faster in it; unchanged elsewhere."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def _with_all_vectors(text: str, added: Mapping[str, int]) -> str:
    """Text with all tokens of textual inversions of several vectors, as in diffusers' pipelines: "<a>" becomes "<a> <a>_1 <a>_2"."""
    for token in added:
        others = list(takewhile(added.__contains__, (f"{token}_{i}" for i in count(1))))
        if others and token in text and others[0] not in text:
            text = text.replace(token, " ".join([token, *others]))
    return text


def load_inpainter(spec: ModelSpec, device: torch.device) -> Inpainter:
    """Load "tiny", a local diffusers folder, a hub id, or a live object: an ``Inpainter`` or a diffusers pipeline with the same parts.

    Raises:
        ModelSourceError: no loadable model; the message names the missing file and the command that fetches it.
        ValueError: weights are missing or left over, or the parts do not fit together.
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
    folder = locate("inpainter", spec.source, "use 'tiny' for the embedded model", HUB_FILES)
    inpainter = _load_folder(folder, spec.torch_dtype, device)
    if spec.compile:
        for network in (inpainter.unet, inpainter.vae):
            compile_regions(network)
        if device.type == "cuda":
            inpainter.graphs = GraphedDenoiser(inpainter.denoise)
    return inpainter


def shared_inpainter(spec: ModelSpec, device: torch.device | str) -> Inpainter:
    """The inpainter of a spec, loaded once per process (``shared_model``).

    A live pipeline is read again at each call: its scheduler may have been replaced, or a LoRA or a textual inversion loaded.
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

    files = [name for part, name in PARTS.items() if part != "tokenizer" or not (folder / "tokenizer/vocab.json").is_file()]
    require_files(
        folder,
        files,
        f"{folder} is no diffusers model folder. Expected the layout of DiffusionPipeline.save_pretrained with {', '.join(PARTS)}; "
        f"fetch one with: hf download ORG/NAME --local-dir {folder}",
    )
    configs = {part: check_slot(part, folder / PARTS[part]) for part in PARTS if (folder / PARTS[part]).is_file()}
    vae_class = AutoencoderTiny if configs["vae"].get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    vae = load_pretrained(vae_class, folder / "vae", torch_dtype=dtype)
    unet = load_pretrained(UNet2DConditionModel, folder / "unet", torch_dtype=dtype)
    text_encoder = load_pretrained(CLIPTextModel, folder / "text_encoder").to(dtype)  # the keyword's name differs between versions
    tokenizer = load_tokenizer(CLIPTokenizer, folder / "tokenizer")
    parts = (vae.to(device), unet.to(device), text_encoder.to(device), tokenizer, build_scheduler_of(folder / PARTS["scheduler"]))
    return Inpainter(*parts, paintings=read_paintings(folder))
