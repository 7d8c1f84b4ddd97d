"""Medical Semantic Controller: features of what the mask hides, predicted from what it shows, steer the UNet beside the text."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.medsam import MedSAM, load_medsam
from monai_diffaug.models.module_view import ModuleView
from monai_diffaug.models.registry import ModelSpec, live_object, shared_model, tiny_folder
from monai_diffaug.models.semantic_networks import SemanticAdapter, SemanticConfig, SemanticController, attention_dims, patch_mask

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
        self._unets: WeakKeyDictionary[Any, ModuleView] = WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def adapter(self) -> SemanticAdapter:
        adapter: SemanticAdapter = self.parts["adapter"]  # type: ignore[assignment]
        return adapter

    def unet_of(self, unet: Any) -> Any:
        """The UNet as it is now, with the adapter (``adapter.attached_to``); the same one as long as no part of it was exchanged.

        Weights and the parts outside the ways to the cross-attentions are the given UNet's own, so what is loaded into them (a LoRA, its
        scale) is always seen. A UNet behind ``torch.compile`` is taken as it was before.
        """
        plain = getattr(unet, "_orig_mod", unet)
        with self._lock:
            view = self._unets.get(plain)
            if view is None or not view.is_current(plain):
                view = self._unets[plain] = self.adapter.attached_to(plain)
            return view.module

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
                f"{folder / name} is missing; train a semantic controller with monai-diffaug train semantic-controller "
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
            "with python -m monai_diffaug.training.embedded.train_semantic_controller, or put the MedSAM back that its config.json names"
        )
    model.parts.to(device, dtype).eval().requires_grad_(False)
    return model
