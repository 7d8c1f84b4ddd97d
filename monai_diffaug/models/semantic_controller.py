"""Medical Semantic Controller: features of what the mask hides, predicted from what it shows, steer the UNet beside the text."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.medsam import MedSAM, load_medsam
from monai_diffaug.models.registry import ModelSpec, live_object, shared_model, tiny_folder

__all__ = [
    "FeatureEncoder",
    "MedSAMFeatures",
    "SemanticAdapter",
    "SemanticConfig",
    "SemanticController",
    "SemanticDenoiser",
    "SemanticModel",
    "build_semantic_model",
    "load_semantic_controller",
    "patch_mask",
    "save_semantic_controller",
]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
CROSS_ATTENTION = "attn2.processor"


class FeatureEncoder(Protocol):
    """Images (B, 3, h, w) in [-1, 1] -> patch features (B, P, E), row by row of a square grid, and a global one (B, E)."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


class MedSAMFeatures:
    """MedSAM's image encoder, averaged to a coarse grid; the global feature is the mean over the image.

    The encoder was trained on medical images of many modalities and the package ships a small one, so no second image
    encoder (CLIP's, in the paper) has to be carried along. Grey values map to [0, 1] by a fixed rule instead of MedSAM's
    minimum and maximum of each image: hiding a bright lesion must not change the features of the tissue around it.

    Args:
        medsam: the wrapper whose image encoder is used.
        grid: patches a side of the result.
    """

    def __init__(self, medsam: MedSAM, grid: int) -> None:
        self.encoder: Any = medsam.sam.image_encoder
        self.size = medsam.image_size
        self.dtype = medsam.dtype
        self.device = medsam.device
        self.grid = grid
        self.dim = int(self.encoder.neck[0].out_channels)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) in [-1, 1] -> (B, grid * grid, E) and (B, E), float32."""
        scaled = ((images.to(self.device).float() + 1) / 2).clamp(0, 1)
        resized = F.interpolate(scaled, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        features = self.encoder(resized.to(self.dtype)).float()
        return F.adaptive_avg_pool2d(features, self.grid).flatten(2).transpose(1, 2), features.mean(dim=(2, 3))

    def fingerprint(self) -> str:
        """Changes when the encoder's weights do: a controller is of use with the features it was trained on only."""
        digest = hashlib.sha256()
        for _, value in sorted(self.encoder.state_dict().items()):
            digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SemanticConfig:
    """Everything that ``config.json`` holds.

    Attributes:
        attention_dims: inner width of each cross-attention of the UNet, in the order of ``unet.attn_processors``.
        feature_dim: width E of the image features.
        text_dim: width of the text states.
        encoder: source of the MedSAM whose features are used.
        encoder_fingerprint: of its weights; "" is not checked.
        grid: patches a side.
        width: width of the transformer.
        depth: its layers.
        heads: its attention heads.
        token_dim: width of the tokens that the UNet attends to.
    """

    attention_dims: tuple[int, ...]
    feature_dim: int
    text_dim: int
    encoder: str = "tiny"
    encoder_fingerprint: str = ""
    grid: int = 16
    width: int = 128
    depth: int = 4
    heads: int = 4
    token_dim: int = 128


def patch_mask(mask: Tensor, grid: int) -> Tensor:
    """(B, 1, h, w) in {0, 1} -> (B, grid * grid, 1): a patch counts as hidden when any of its pixels is."""
    return F.adaptive_max_pool2d(mask.float(), grid).flatten(2).transpose(1, 2)


class SemanticController(nn.Module):
    """A transformer over patch, global and text tokens that predicts the features under the mask (MedSoft-Diffusion 2025).

    Before training it returns the masked image's features as they are.
    """

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        width = config.width
        self.of_patches = nn.Linear(config.feature_dim, width)
        self.of_global = nn.Linear(config.feature_dim, width)
        self.of_text = nn.Linear(config.text_dim, width)
        self.mask_embedding = nn.Embedding(2, width)
        self.position = nn.Parameter(0.02 * torch.randn(config.grid**2, width))
        layer = nn.TransformerEncoderLayer(width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.to_patches = nn.Linear(width, config.feature_dim)
        self.to_global = nn.Linear(width, config.feature_dim)
        for head in (self.to_patches, self.to_global):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, patches: Tensor, pooled: Tensor, text: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the unmasked image's features.

        Args:
            patches: (B, P, E) features of the masked image.
            pooled: (B, E) its global feature.
            text: (B, L, D) text states.
            hidden: (B, P, 1) in {0, 1}, see ``patch_mask``.

        Returns:
            (B, P, E) and (B, E).
        """
        count = patches.shape[1]
        tokens = self.of_patches(patches) + self.position + self.mask_embedding(hidden[..., 0].long())
        seen = self.layers(torch.cat([tokens, self.of_global(pooled)[:, None], self.of_text(text)], dim=1))
        return patches + self.to_patches(seen[:, :count]), pooled + self.to_global(seen[:, count])


class SemanticAdapter(nn.Module):
    """What the UNet needs to attend to image tokens: their projection, and a key and a value map for each cross-attention.

    The maps are diffusers' IP-Adapter attention processors (decoupled cross-attention, Ye et al. 2023). The value maps
    start at zero, so an untrained adapter leaves the UNet's output as it is, and tokens that are zero always do.
    """

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

        count = config.grid**2 + 1
        self.project = nn.Sequential(nn.Linear(config.feature_dim, config.token_dim), nn.LayerNorm(config.token_dim))
        self.position = nn.Parameter(0.02 * torch.randn(count, config.token_dim))
        self.processors = nn.ModuleList(
            IPAdapterAttnProcessor2_0(hidden_size=dim, cross_attention_dim=config.token_dim, num_tokens=(count,))
            for dim in config.attention_dims
        )
        for processor in self.processors:
            values: Any = processor.to_v_ip
            nn.init.zeros_(values[0].weight)

    def forward(self, features: Tensor) -> Tensor:
        """Patch features and the global one (B, P + 1, E) -> tokens (B, P + 1, token_dim)."""
        tokens: Tensor = self.project(features) + self.position
        return tokens

    def attached_to(self, unet: Any) -> Any:
        """A second UNet on the same weights whose cross-attentions also see image tokens; the given one stays as it is.

        Modules are copied, parameters and buffers are shared: nothing that other users of the UNet hold is written.

        Raises:
            ValueError: the UNet's cross-attentions are not those that the adapter was made for.
        """
        from diffusers.models.embeddings import MultiIPAdapterImageProjection

        expected, found = tuple(p.hidden_size for p in self.processors), attention_dims(unet)
        if expected != found:
            raise ValueError(
                f"the semantic controller was made for a UNet with cross-attentions of widths {expected}, this one has {found}; "
                "train one for this model: python -m monai_diffaug.training.semantic_controller"
            )
        if unet.config.encoder_hid_dim_type is not None:
            raise ValueError(f"the UNet already takes {unet.config.encoder_hid_dim_type!r}; the semantic controller needs a plain one")
        own = deepcopy(unet, {id(tensor): tensor for tensor in chain(unet.parameters(), unet.buffers())})
        processors = dict(own.attn_processors)
        crossing = [name for name in processors if name.endswith(CROSS_ATTENTION)]
        own.set_attn_processor({**processors, **dict(zip(crossing, self.processors, strict=True))})
        own.encoder_hid_proj = MultiIPAdapterImageProjection([nn.Identity()])
        own.register_to_config(encoder_hid_dim_type="ip_image_proj")
        return own


def attention_dims(unet: Any) -> tuple[int, ...]:
    """Inner width of each cross-attention of a diffusers UNet."""
    modules = dict(unet.named_modules())
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith(CROSS_ATTENTION)]
    return tuple(int(modules[name].to_k.out_features) for name in names)


class SemanticModel:
    """Controller, adapter and the encoder of the features, on one device.

    Args:
        config: their sizes.
        encoder: makes the features.
    """

    def __init__(self, config: SemanticConfig, encoder: FeatureEncoder) -> None:
        self.config = config
        self.encoder = encoder
        self.parts = nn.ModuleDict({"controller": SemanticController(config), "adapter": SemanticAdapter(config)})
        self._unets: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def adapter(self) -> SemanticAdapter:
        adapter: SemanticAdapter = self.parts["adapter"]  # type: ignore[assignment]
        return adapter

    def unet_of(self, unet: Any) -> Any:
        """``adapter.attached_to(unet)``, made once for each UNet."""
        with self._lock:
            if unet not in self._unets:
                self._unets[unet] = self.adapter.attached_to(unet)
            return self._unets[unet]

    def tokens_of(self, patches: Tensor, pooled: Tensor, text: Tensor, hidden: Tensor) -> Tensor:
        """Tokens (B, P + 1, token_dim) of s = M * predicted + (1 - M) * features and of the predicted global feature.

        Args:
            patches: (B, P, E) features of the masked image.
            pooled: (B, E) its global feature.
            text: (B, L, D) text states.
            hidden: (B, P, 1) the mask M on the patches.
        """
        predicted, predicted_pooled = self.parts["controller"](patches, pooled, text, hidden)
        features = hidden * predicted + (1 - hidden) * patches
        tokens: Tensor = self.parts["adapter"](torch.cat([features, predicted_pooled[:, None]], dim=1))
        return tokens

    @torch.no_grad()
    def tokens(self, images: Tensor, hard: Tensor, text: Tensor) -> Tensor:
        """Tokens (B, P + 1, token_dim) for images (B, 3, h, w) in [-1, 1], hard masks (B, 1, h, w), text states (B, L, D)."""
        like = self.adapter.position
        patches, pooled = self.encoder(images * (hard < 0.5))
        hidden = patch_mask(hard, self.config.grid)
        return self.tokens_of(patches.to(like), pooled.to(like), text.to(like), hidden.to(like))


class SemanticDenoiser:
    """The ``Denoiser`` of an inpainter that also attends to the semantic tokens of given images.

    With classifier-free guidance the sampler stacks the unconditional half in front of the conditional one; that half
    gets zero tokens, which is the plain UNet: text and semantic tokens are dropped together.

    Args:
        inpainter: its UNet's weights are used, the UNet itself is left as it is.
        model: controller and adapter.
        images: (B, 3, h, w) in [-1, 1], the unmasked images.
        hard: (B, 1, h, w) in {0, 1}.
        context: (B, L, D) text states of the prompts.

    Raises:
        ValueError: the adapter, which becomes a part of the UNet, is on another device or in another type than it.
    """

    def __init__(self, inpainter: Inpainter, model: SemanticModel, *, images: Tensor, hard: Tensor, context: Tensor) -> None:
        held = model.adapter.position
        ours, theirs = (held.device, held.dtype), (inpainter.device, inpainter.dtype)
        if ours != theirs:
            raise ValueError(f"the semantic controller is on {ours}, the inpainter on {theirs}; give both the same device= and dtype=")
        self.unet = model.unet_of(inpainter.unet)
        self.tokens = model.tokens(images.to(inpainter.device), hard.to(inpainter.device), context).to(inpainter.dtype)

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Latents (B or 2B, C, h, w), timestep, text states (B or 2B, L, D) -> prediction.

        Raises:
            ValueError: a batch that is neither the images' nor twice it.
        """
        tokens = self.tokens
        if len(latents) == 2 * len(tokens):
            tokens = torch.cat([torch.zeros_like(tokens), tokens])
        elif len(latents) != len(tokens):
            raise ValueError(f"this denoiser was made for {len(tokens)} images, got {len(latents)} latents (twice as many when guided)")
        prediction: Tensor = self.unet(
            latents,
            timestep,
            encoder_hidden_states=context,
            added_cond_kwargs={"image_embeds": [tokens[:, None]]},
            return_dict=False,
        )[0]
        return prediction


def build_semantic_model(inpainter: Inpainter, *, encoder: str = "tiny", grid: int = 16) -> SemanticModel:
    """An untrained controller and adapter for an inpainter.

    Args:
        inpainter: gives the widths of its cross-attentions and text states.
        encoder: source of the MedSAM whose features are predicted.
        grid: patches a side.
    """
    features = _features(encoder, grid, inpainter.device)
    config = SemanticConfig(
        attention_dims=attention_dims(inpainter.unet),
        feature_dim=features.dim,
        text_dim=int(inpainter.text_encoder.config.hidden_size),
        encoder=encoder,
        encoder_fingerprint=features.fingerprint(),
        grid=grid,
    )
    model = SemanticModel(config, features)
    model.parts.to(inpainter.device, inpainter.dtype)
    return model


def _features(encoder: str, grid: int, device: torch.device) -> MedSAMFeatures:
    return MedSAMFeatures(shared_model(ModelSpec("medsam", encoder), device, load_medsam), grid)


def save_semantic_controller(config: SemanticConfig, parts: nn.Module, folder: Path) -> int:
    """Write ``config.json`` and ``model.safetensors`` (float16); returns the bytes written."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(config), indent=2) + "\n")
    weights = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in parts.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    return sum((folder / name).stat().st_size for name in (CONFIG_FILE, WEIGHTS_FILE))


def load_semantic_controller(spec: ModelSpec, device: torch.device) -> SemanticModel:
    """Load what a spec names.

    Args:
        spec: source "tiny" (embedded), a folder as ``save_semantic_controller`` writes it, or a live ``SemanticModel``.
        device: where the weights go.

    Raises:
        ModelSourceError: the folder or one of its files is missing.
        ValueError: the files do not fit together, or the encoder is not the one the controller was trained with.
    """
    live = live_object(spec)
    if live is not None:
        if not isinstance(live, SemanticModel):
            raise ValueError(f"semantic_controller= must be a SemanticModel or a source string, got {type(live).__name__}")
        live.parts.to(device)
        return live
    folder = tiny_folder("semantic_controller") if spec.source == "tiny" else Path(spec.source).expanduser()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelSourceError(
                f"{folder / name} is missing; train a semantic controller with python -m monai_diffaug.training.semantic_controller "
                "and pass the folder it writes, or use 'tiny' for the embedded one"
            )
    return _load_folder(folder, spec.torch_dtype, device)


def _load_folder(folder: Path, dtype: torch.dtype, device: torch.device) -> SemanticModel:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
        dims: Sequence[int] = values.pop("attention_dims")
        config = SemanticConfig(attention_dims=tuple(dims), **values)
        features = _features(config.encoder, config.grid, device)
        model = SemanticModel(config, features)
        model.parts.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (KeyError, TypeError, json.JSONDecodeError, RuntimeError, SafetensorError) as error:
        fault = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder} holds no semantic controller of this version ({fault}); train or fetch it again") from error
    if config.encoder_fingerprint not in ("", features.fingerprint()):
        raise ValueError(
            f"the semantic controller in {folder} was trained on the features of another {config.encoder!r} MedSAM; train it again "
            "with python -m monai_diffaug.training.semantic_controller, or put the MedSAM back that its config.json names"
        )
    model.parts.to(device, dtype).eval().requires_grad_(False)
    return model
