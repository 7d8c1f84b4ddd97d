"""Build, read and write ``segment_anything`` Sams of any size, under its own or transformers' names of the weights."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from monai_diffaug.errors import MissingExtraError

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

__all__ = ["FETCH", "TINY_CONFIG", "build_sam", "config_of", "load_sam", "sam_names", "save_sam"]

TINY_CONFIG: Mapping[str, Any] = {
    "image_size": 256,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 2,
    "window_size": 8,
    "global_attn_indexes": [3],
    "prompt_dim": 128,
    "mask_in_chans": 64,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "decoder_mlp_dim": 256,
    "box_as_mask": True,
}
FETCH = "https://zenodo.org/records/10689643/files/medsam_vit_b.pth"  # the checkpoint that MedSAM's authors published
SAM_DECODER_HEADS = 8  # vit_b, vit_l and vit_h alike; the weights' shapes do not tell


def build_sam(config: Mapping[str, Any]) -> Sam:
    """A ``segment_anything`` Sam of any size, with fresh weights.

    Raises:
        MissingExtraError: segment-anything is not installed.
    """
    try:
        from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    except ImportError as error:
        raise MissingExtraError(
            f"MedSAM needs segment-anything and torchvision ({error}): pip install segment-anything torchvision"
        ) from error

    size, grid, width = config["image_size"], config["image_size"] // config["patch_size"], config["prompt_dim"]
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=size,
            patch_size=config["patch_size"],
            embed_dim=config["embed_dim"],
            depth=config["depth"],
            num_heads=config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
            out_chans=width,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=config["window_size"],
            global_attn_indexes=tuple(config["global_attn_indexes"]),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
            mask_in_chans=config["mask_in_chans"],
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(
                depth=config["decoder_depth"],
                embedding_dim=width,
                num_heads=config["decoder_heads"],
                mlp_dim=config["decoder_mlp_dim"],
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
    )


def save_sam(sam: Sam, config: Mapping[str, Any], folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` in float16."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
    save_file(
        {name: value.to(torch.float16).contiguous() for name, value in sam.state_dict().items()},
        folder / "model.safetensors",
    )


def config_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of a Sam, read from its weights' shapes: vit_b, vit_l, vit_h or any other.

    Raises:
        KeyError: a weight that every Sam has is missing.
    """
    patch = weights["image_encoder.patch_embed.proj.weight"]
    dim, patch_size = int(patch.shape[0]), int(patch.shape[-1])
    grid = int(weights["image_encoder.pos_embed"].shape[1])

    def count(prefix: str) -> int:
        return 1 + max((int(m[1]) for name in weights if (m := re.match(re.escape(prefix) + r"\.(\d+)\.", name))), default=-1)

    depth = count("image_encoder.blocks")
    reach = [int(weights[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape[0]) for i in range(depth)]
    windows = [(r + 1) // 2 for r in reach if r != 2 * grid - 1]
    return {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": dim // int(weights["image_encoder.blocks.0.attn.rel_pos_h"].shape[1]),
        "mlp_ratio": weights["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / dim,
        "window_size": windows[0] if windows else 0,
        "global_attn_indexes": [i for i, r in enumerate(reach) if r == 2 * grid - 1],
        "prompt_dim": int(weights["image_encoder.neck.0.weight"].shape[0]),
        "mask_in_chans": int(weights["prompt_encoder.mask_downscaling.3.weight"].shape[0]),
        "decoder_depth": count("mask_decoder.transformer.layers"),
        "decoder_heads": SAM_DECODER_HEADS,
        "decoder_mlp_dim": int(weights["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0]),
    }


# transformers' names of the same weights, in the order in which they have to be replaced
_RENAMED = (
    (r"^vision_encoder\.", "image_encoder."),
    (
        r"^prompt_encoder\.shared_embedding\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.0\.", r"\1.layers.1."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.proj_in\.", r"\1.layers.0."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.proj_out\.", r"\1.layers.2."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)


def sam_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under ``segment_anything``'s names, whether they come under those or transformers' ``SamModel``'s."""
    if not any(name.startswith("vision_encoder.") for name in weights):
        return {name.removeprefix("module."): value for name, value in weights.items()}
    renamed = {}
    for name, value in weights.items():
        if name == "shared_image_embedding.positional_embedding":  # the same tensor as the prompt encoder's
            name = "prompt_encoder.shared_embedding.positional_embedding"
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _read_weights(file: Path) -> Mapping[str, Tensor]:
    """Tensors of a ``.safetensors`` file or of a pickle that holds nothing but tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{file} is no readable checkpoint of tensors ({file.stat().st_size} bytes): truncated, or a pickle with "
            f"code in it, which is never run; fetch it again, e.g. curl -L -o {file} {FETCH}"
        ) from error
    if isinstance(weights, Mapping) and isinstance(weights.get("model"), Mapping):  # what MedSAM's training script saves
        weights = weights["model"]
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{file} holds {type(weights).__name__}, expected the state dict of a segment_anything Sam")
    return weights


def load_sam(file: Path, config: Mapping[str, Any] | None = None) -> Sam:
    """The Sam whose weights a checkpoint file holds.

    Raises:
        ValueError: the file is truncated, holds code, or is of another architecture.
    """
    weights = sam_names(_read_weights(file))
    try:
        sam = build_sam(config or config_of(weights))
        sam.load_state_dict(dict(weights))
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file} does not hold the weights of a segment_anything Sam (vit_b, vit_l, vit_h): {reason}; MedSAM's are at {FETCH}"
        ) from error
    return sam
