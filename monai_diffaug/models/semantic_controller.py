"""Medical Semantic Controller: predicts the image features under the mask from the surroundings; the UNet attends to them and the text."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.models.inpainter import Inpainter
from monai_diffaug.models.medsam import MedSAM, load_medsam
from monai_diffaug.models.module_view import ModuleView
from monai_diffaug.models.registry import ModelSpec, live_object, shared_model
from monai_diffaug.models.semantic_networks import SemanticAdapter, SemanticConfig, SemanticController, attention_dims, patch_mask
from monai_diffaug.models.sources import NETWORK_FILES, WEIGHTS_FILE, load_weights, locate, read_config, require_files, save_network

__all__ = ["MedSAMFeatures", "SemanticDenoiser", "SemanticModel", "build_semantic_model"]
__all__ += ["load_semantic_controller", "patch_mask", "save_semantic_controller"]

NETWORK = "a semantic controller"  # in messages


class FeatureEncoder(Protocol):
    """Images (B, 3, h, w) in [-1, 1] -> patch features (B, P, E), row by row of a square grid, and global features (B, E)."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


class MedSAMFeatures:
    """Features of MedSAM's image encoder, averaged to a coarse grid; the global feature is the mean over the image.

    MedSAM's encoder was trained on medical images of many modalities and the package contains a small one, so the second image
    encoder of the paper (CLIP's) is not needed. Grey values are mapped from [-1, 1] to [0, 1], not from the minimum and maximum of
    each image as in MedSAM: masking a bright lesion must not change the features of the tissue around it.

    Args:
        medsam: the wrapper whose image encoder is used.
        grid: patches per side of the result.
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
        """Hash of the encoder's weights; a controller works only with the features that it was trained on."""
        digest = hashlib.sha256()
        for _, value in sorted(self.encoder.state_dict().items()):
            digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class SemanticModel:
    """Controller, adapter and feature encoder, on one device.

    Args:
        config: sizes of controller and adapter.
        encoder: of the features.
    """

    def __init__(self, config: SemanticConfig, encoder: FeatureEncoder) -> None:
        self.config = config
        self.encoder = encoder
        self.parts = nn.ModuleDict({"controller": SemanticController(config), "adapter": SemanticAdapter(config)})
        self._unets: WeakKeyDictionary[Any, ModuleView] = WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def adapter(self) -> SemanticAdapter:
        """The part that becomes a part of the UNet."""
        adapter: SemanticAdapter = self.parts["adapter"]  # type: ignore[assignment]
        return adapter

    def unet_of(self, unet: Any) -> Any:
        """The UNet with the adapter (``adapter.attached_to``); the same object as long as no part of the UNet is replaced.

        It shares all weights with the UNet, and all modules that do not contain a cross-attention. So a LoRA that is loaded later, or
        its scale, is always used. If ``torch.compile`` wraps the UNet, the module inside is used.
        """
        plain = getattr(unet, "_orig_mod", unet)
        with self._lock:
            view = self._unets.get(plain)
            if view is None or not view.is_current(plain):
                view = self._unets[plain] = self.adapter.attached_to(plain)
            return view.module

    def tokens_of(self, patches: Tensor, pooled: Tensor, text: Tensor, hidden: Tensor) -> Tensor:
        """Tokens (B, P + 1, token_dim) of M * predicted + (1 - M) * patches and of the predicted global features.

        Args:
            patches: (B, P, E) features of the masked image.
            pooled: (B, E) its global features.
            text: (B, L, D) text states.
            hidden: (B, P, 1) in {0, 1}, the mask M on the patches.
        """
        predicted, predicted_pooled = self.parts["controller"](patches, pooled, text, hidden)
        features = hidden * predicted + (1 - hidden) * patches
        tokens: Tensor = self.parts["adapter"](torch.cat([features, predicted_pooled[:, None]], dim=1))
        return tokens

    @torch.no_grad()
    def tokens(self, images: Tensor, hard: Tensor, text: Tensor) -> Tensor:
        """Tokens (B, P + 1, token_dim) for images (B, 3, h, w) in [-1, 1], hard masks (B, 1, h, w), text states (B, L, D)."""
        weight = self.adapter.position
        patches, pooled = self.encoder(images * (hard < 0.5))
        hidden = patch_mask(hard, self.config.grid)
        return self.tokens_of(patches.to(weight), pooled.to(weight), text.to(weight), hidden.to(weight))


class SemanticDenoiser:
    """The ``Denoiser`` of an inpainter that also attends to the semantic tokens of the images.

    With classifier-free guidance the first half of the batch is unconditional. It gets zero tokens, with which the UNet computes the
    same as without an adapter: text and semantic tokens are dropped together.

    Args:
        inpainter: its UNet's weights are used; the UNet itself is not changed.
        model: controller and adapter.
        images: (B, 3, h, w) in [-1, 1], the unmasked images.
        hard: (B, 1, h, w) in {0, 1}.
        context: (B, L, D) text states of the prompts.

    Raises:
        ValueError: the adapter is on another device or in another type than the UNet.
    """

    def __init__(self, inpainter: Inpainter, model: SemanticModel, *, images: Tensor, hard: Tensor, context: Tensor) -> None:
        weight = model.adapter.position
        place, unet_place = (weight.device, weight.dtype), (inpainter.device, inpainter.dtype)
        if place != unet_place:
            raise ValueError(f"the semantic controller is on {place}, the inpainter on {unet_place}; give both the same device= and dtype=")
        self.unet = model.unet_of(inpainter.unet)
        self.tokens = model.tokens(images.to(inpainter.device), hard.to(inpainter.device), context).to(inpainter.dtype)

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Latents (B or 2B, C, h, w), timestep, text states (B or 2B, L, D) -> prediction.

        Raises:
            ValueError: a batch size that is neither that of the images nor twice that.
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
    """An untrained controller and adapter for an inpainter, with ``grid`` patches per side.

    They predict features of the MedSAM with the source ``encoder``.
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
    return save_network(asdict(config), parts, folder)


def load_semantic_controller(spec: ModelSpec, device: torch.device) -> SemanticModel:
    """Load "tiny" (embedded), a folder or hub id with the files of ``save_semantic_controller``, or a live ``SemanticModel``.

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
    advice = (
        "train a semantic controller with monai-diffaug train semantic-controller and pass the folder it writes, or use 'tiny' for the "
        "embedded one"
    )
    folder = locate("semantic_controller", spec.source, advice)
    require_files(folder, NETWORK_FILES, advice)
    config = read_config(folder, _config_of, NETWORK)
    features = _features(config.encoder, config.grid, device)
    model = SemanticModel(config, features)
    load_weights(model.parts, folder / WEIGHTS_FILE, NETWORK)
    if config.encoder_fingerprint not in ("", features.fingerprint()):
        raise ValueError(
            f"the semantic controller in {folder} was trained on the features of another {config.encoder!r} MedSAM; train it again "
            "with monai-diffaug train semantic-controller, or put the MedSAM back that its config.json names"
        )
    model.parts.to(device, spec.torch_dtype).eval().requires_grad_(False)
    return model


def _config_of(values: dict[str, Any]) -> SemanticConfig:
    return SemanticConfig(**{**values, "attention_dims": tuple(values["attention_dims"])})
