"""Build, read and write ``segment_anything`` Sams of any size; weights may have the names of ``segment_anything`` or of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from monai_diffaug.errors import MissingExtraError, one_line
from monai_diffaug.models.sources import load_state, read_weights, save_network

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
SAM_DECODER_HEADS = 8  # of vit_b, vit_l and vit_h; the shapes of the weights do not depend on it
NETWORK = "a segment_anything Sam (vit_b, vit_l, vit_h)"  # in messages


def build_sam(config: Mapping[str, Any]) -> Sam:
    """Build a ``segment_anything`` Sam of any size, with random weights.

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
    encoder_sizes = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "window_size")
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=size,
            out_chans=width,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=tuple(config["global_attn_indexes"]),
            **{name: config[name] for name in encoder_sizes},
        ),
        prompt_encoder=PromptEncoder(width, (grid, grid), (size, size), config["mask_in_chans"]),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(config["decoder_depth"], width, config["decoder_heads"], config["decoder_mlp_dim"]),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
    )


def save_sam(sam: Sam, config: Mapping[str, Any], folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` in float16."""
    save_network(config, sam, folder)


def config_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the sizes of a Sam from the shapes of its weights: vit_b, vit_l, vit_h or any other.

    Raises:
        KeyError: the state dict is not that of a Sam.
    """
    patch = weights["image_encoder.patch_embed.proj.weight"]
    dim, patch_size = int(patch.shape[0]), int(patch.shape[-1])
    grid = int(weights["image_encoder.pos_embed"].shape[1])

    def count(prefix: str) -> int:
        return 1 + max((int(m[1]) for name in weights if (m := re.match(re.escape(prefix) + r"\.(\d+)\.", name))), default=-1)

    depth = count("image_encoder.blocks")
    lengths = [int(weights[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape[0]) for i in range(depth)]  # of the position tables
    windows = [(length + 1) // 2 for length in lengths if length != 2 * grid - 1]
    return {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": dim // int(weights["image_encoder.blocks.0.attn.rel_pos_h"].shape[1]),
        "mlp_ratio": weights["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / dim,
        "window_size": windows[0] if windows else 0,
        "global_attn_indexes": [i for i, length in enumerate(lengths) if length == 2 * grid - 1],
        "prompt_dim": int(weights["image_encoder.neck.0.weight"].shape[0]),
        "mask_in_chans": int(weights["prompt_encoder.mask_downscaling.3.weight"].shape[0]),
        "decoder_depth": count("mask_decoder.transformer.layers"),
        "decoder_heads": SAM_DECODER_HEADS,
        "decoder_mlp_dim": int(weights["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0]),
    }


# transformers' names of layers that segment_anything keeps in a Sequential: (prefix, new prefix, name -> index)
_LAYERS: tuple[tuple[str, str, Mapping[str, int]], ...] = (
    (r"\.mask_embed\.", ".mask_downscaling.", {"conv1": 0, "layer_norm1": 1, "conv2": 3, "layer_norm2": 4, "conv3": 6}),
    (r"\.neck\.", ".neck.", {"conv1": 0, "layer_norm1": 1, "conv2": 2, "layer_norm2": 3}),
    (r"\.upscale_", ".output_upscaling.", {"conv1": 0, "layer_norm": 1, "conv2": 3}),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.", r"\1.layers.", {r"layers\.0": 1, "proj_in": 0, "proj_out": 2}),
)
# transformers' names of the weights and those of segment_anything, in the order of replacement
_RENAMED = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"^prompt_encoder\.shared_embedding\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    *((f"{prefix}{name}\\.", f"{new}{index}.") for prefix, new, layers in _LAYERS for name, index in layers.items()),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)


def sam_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of ``segment_anything``, given those of ``segment_anything`` or of transformers' ``SamModel``."""
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


def load_sam(file: Path, config: Mapping[str, Any] | None = None) -> Sam:
    """Load the Sam of a checkpoint file; its sizes come from ``config`` or from the weights.

    Raises:
        ValueError: the file is truncated, contains code, or is of another architecture.
    """
    weights = sam_names(read_weights(file, NETWORK, f"fetch it again, e.g. curl -L -o {file} {FETCH}"))
    try:
        sam = build_sam(config or config_of(weights))
    except (KeyError, IndexError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"{file} does not hold the weights of {NETWORK}: {one_line(error)}; MedSAM's are at {FETCH}") from error
    load_state(sam, weights, file, NETWORK)
    return sam
