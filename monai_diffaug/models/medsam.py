"""MedSAM: box-prompted masks with segment_anything's networks, in the steps of MedSAM's official inference."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffaug.errors import MissingExtraError, ModelSourceError
from monai_diffaug.models.registry import ModelSpec, live_object, tiny_folder

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

__all__ = [
    "TINY_CONFIG",
    "MedSAM",
    "box_coverage",
    "build_sam",
    "config_of",
    "cubic_matrix",
    "load_medsam",
    "prompt_with_boxes",
    "resize_cubic",
    "sam_names",
    "save_sam",
]

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
HUB_FILES = ("model.safetensors", "medsam_vit_b.pth", "pytorch_model.bin")
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


def _mirror(index: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """Indices reflected about the centres of the first and the last sample."""
    if n == 1:
        return np.zeros_like(index)
    folded = np.mod(index, 2 * (n - 1))
    mirrored: np.ndarray[Any, Any] = np.minimum(folded, 2 * (n - 1) - folded)
    return mirrored


@lru_cache(maxsize=32)
def cubic_matrix(n_in: int, n_out: int) -> Tensor:
    """(n_out, n_in) float32: one axis of ``skimage.transform.resize(order=3, anti_aliasing=True)``, unclipped.

    A Gaussian of sigma ``max(0, (n_in / n_out - 1) / 2)`` cut at 4 sigma, the cubic B-spline through the samples,
    evaluated at pixel centres; mirrored borders throughout (scipy.ndimage: ``mode="mirror"``, ``grid_mode=True``).
    """
    rows = np.arange(n_in)
    sigma = max(0.0, (n_in / n_out - 1) / 2)
    blur = np.eye(n_in)
    radius = int(4 * sigma + 0.5)
    if sigma > 1e-15:
        taps = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (taps / sigma) ** 2)
        blur = np.zeros((n_in, n_in))
        for offset, weight in zip(taps, weights / weights.sum(), strict=True):
            np.add.at(blur, (rows, _mirror(rows + offset, n_in)), weight)
    knots = np.zeros((n_in, n_in))
    for tap, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        np.add.at(knots, (rows, _mirror(rows + tap, n_in)), weight)
    position = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    first = np.floor(position).astype(int)
    t = position - first
    basis = np.zeros((n_out, n_in))
    cubic = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    for tap, values in zip((-1, 0, 1, 2), cubic, strict=True):
        np.add.at(basis, (np.arange(n_out), _mirror(first + tap, n_in)), values)
    return torch.from_numpy((basis @ np.linalg.solve(knots, blur)).astype(np.float32))


def resize_cubic(images: Tensor, size: int) -> Tensor:
    """Images (N, C, h, w) resized to (N, C, size, size), clipped to each image's own range.

    Equals ``skimage.transform.resize(order=3, preserve_range=True, anti_aliasing=True)`` of each image in float32.
    """
    vertical = cubic_matrix(images.shape[-2], size).to(images.device)
    horizontal = cubic_matrix(images.shape[-1], size).to(images.device)
    images = images.float()
    resized = vertical @ images @ horizontal.T
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return torch.minimum(torch.maximum(resized, low), high)


def box_coverage(boxes_xyxy: Tensor, image_size: int, grid: int) -> Tensor:
    """(P, 1, grid, grid): how much of each cell lies within each box, from -1 (nothing) to 1 (all of it).

    Args:
        boxes_xyxy: (P, 4) in pixels of the model's square input.
        image_size: side of that input in pixels.
        grid: cells a side.
    """
    edges = torch.arange(grid, device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
    x0, y0, x1, y1 = (boxes_xyxy * (grid / image_size))[:, :, None].unbind(1)
    along_x = (torch.minimum(x1, edges + 1) - torch.maximum(x0, edges)).clamp(0, 1)
    along_y = (torch.minimum(y1, edges + 1) - torch.maximum(y0, edges)).clamp(0, 1)
    return (along_y[:, :, None] * along_x[:, None, :] * 2 - 1)[:, None]


def prompt_with_boxes(sam: Sam, boxes_xyxy: Tensor, box_as_mask: bool) -> tuple[Tensor, Tensor]:
    """Sparse and dense prompt embeddings of boxes (P, 4) in pixels of the model's input.

    ``box_as_mask`` hands the filled box to SAM's mask prompt too: with corner tokens alone, a net trained for minutes
    does worse than an ellipse drawn in the box (IoU 0.47 against 0.63 after 1 200 steps).
    """
    encoder = sam.prompt_encoder
    masks = box_coverage(boxes_xyxy, encoder.input_image_size[0], encoder.mask_input_size[0]) if box_as_mask else None
    sparse, dense = encoder(points=None, boxes=boxes_xyxy, masks=masks)
    return sparse, dense


class MedSAM:
    """A ``segment_anything`` Sam prompted with one box a slice, as MedSAM's official inference does it.

    Args:
        sam: the networks; the wrapper owns them: it moves, freezes and casts them.
        device: where they shall live.
        dtype: floating type of the image encoder; prompt encoder and mask decoder are small and stay float32.
        box_as_mask: give the filled box as SAM's mask prompt beside the corner tokens, as the embedded model was
            trained; False is MedSAM's way.
    """

    def __init__(
        self,
        sam: Sam,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        box_as_mask: bool = False,
    ) -> None:
        self.sam = sam.to(device).eval().requires_grad_(False)
        self.sam.image_encoder.to(dtype)
        self.device = torch.device(device)
        self.dtype = dtype
        self.box_as_mask = box_as_mask
        self.image_size = int(sam.image_encoder.img_size)

    def prepare(self, slices: Tensor) -> Tensor:
        """The encoder's input: three channels, cubic resize to the model's size, min-max to [0, 1] slice by slice.

        Stays in floating point; the official script, which reads 8-bit images, truncates to 8 bit after the resize.

        Args:
            slices: (S, C, h, w) with C = 1 or 3, any unit.
        """
        if slices.ndim != 4 or slices.shape[1] not in (1, 3):
            raise ValueError(
                f"slices must be (S, 1 or 3, h, w), got {tuple(slices.shape)}; pick or merge channels before MedSAM"
            )
        resized = resize_cubic(slices.to(self.device), self.image_size)
        low, high = resized.amin((1, 2, 3), keepdim=True), resized.amax((1, 2, 3), keepdim=True)
        return ((resized - low) / (high - low).clamp_min(1e-8)).expand(-1, 3, -1, -1)

    @torch.no_grad()
    def encode(self, slices: Tensor, batch_size: int = 4) -> Tensor:
        """Embeddings (S, E, g, g) float32 of slices (S, 1 or 3, h, w); each serves any number of boxes."""
        return torch.cat(
            [
                self.sam.image_encoder(self.prepare(chunk).to(self.dtype)).float()
                for chunk in torch.split(slices, batch_size)
            ]
        )

    @torch.no_grad()
    def decode(self, embeddings: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Masks of one box a slice.

        Args:
            embeddings: (S, E, g, g) from ``encode``.
            boxes_xyxy: (S, 4) in pixels of the slices: x along the width w, y along the height h.
            size_hw: (h, w) of the slices.

        Returns:
            Masks (S, h, w) bool and the predicted IoU (S,) float32 of each.
        """
        if boxes_xyxy.shape != (len(embeddings), 4):
            raise ValueError(
                f"boxes_xyxy must be ({len(embeddings)}, 4), one box an embedding, got {tuple(boxes_xyxy.shape)}"
            )
        height, width = size_hw
        extent = torch.tensor([width, height, width, height], dtype=torch.float32, device=self.device)
        boxes = boxes_xyxy.to(self.device, torch.float32) / extent * self.image_size
        positions = self.sam.prompt_encoder.get_dense_pe()
        masks, predicted_iou = [], []
        for embedding, box in zip(embeddings.to(self.device), boxes, strict=True):
            sparse, dense = prompt_with_boxes(self.sam, box[None], self.box_as_mask)
            logits, quality = self.sam.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            probability = F.interpolate(
                torch.sigmoid(logits), size=(height, width), mode="bilinear", align_corners=False
            )
            masks.append(probability[0, 0] > 0.5)
            predicted_iou.append(quality[0, 0])
        return torch.stack(masks), torch.stack(predicted_iou)


def config_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of a Sam, read from its weights' shapes: vit_b, vit_l, vit_h or any other.

    Raises:
        KeyError: a weight that every Sam has is missing.
    """
    patch = weights["image_encoder.patch_embed.proj.weight"]
    dim, patch_size = int(patch.shape[0]), int(patch.shape[-1])
    grid = int(weights["image_encoder.pos_embed"].shape[1])

    def count(prefix: str) -> int:
        return 1 + max(
            (int(m[1]) for name in weights if (m := re.match(re.escape(prefix) + r"\.(\d+)\.", name))), default=-1
        )

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
        weights = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
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
    if isinstance(weights, Mapping) and isinstance(
        weights.get("model"), Mapping
    ):  # what MedSAM's training script saves
        weights = weights["model"]
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{file} holds {type(weights).__name__}, expected the state dict of a segment_anything Sam")
    return weights


def _load_file(file: Path, config: Mapping[str, Any] | None = None) -> Sam:
    weights = sam_names(_read_weights(file))
    try:
        sam = build_sam(config or config_of(weights))
        sam.load_state_dict(dict(weights))
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file} does not hold the weights of a segment_anything Sam (vit_b, vit_l, vit_h): {reason}; "
            f"MedSAM's are at {FETCH}"
        ) from error
    return sam


def _load_folder(folder: Path, device: torch.device | str, dtype: torch.dtype) -> MedSAM:
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ModelSourceError(
                f"{file} is missing; {folder} must hold config.json and model.safetensors as save_sam writes them"
            )
    config = json.loads(config_file.read_text())
    return MedSAM(_load_file(weights_file, config), device, dtype, box_as_mask=bool(config.get("box_as_mask", False)))


def _load_hub(source: str) -> Sam:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = source.partition("@")
    command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    reason: Exception | None = None
    for name in HUB_FILES:
        try:
            return _load_file(Path(hf_hub_download(repository, name, revision=revision or None)))
        except LocalEntryNotFoundError as error:
            reason = error
        except EntryNotFoundError as error:
            reason = reason or error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            if isinstance(error, ModelSourceError):
                raise
            reason = error
            break
    raise ModelSourceError(
        f"none of {', '.join(HUB_FILES)} of {source!r} can be had from here ({type(reason).__name__}); where there is "
        f"a network, run '{command}', or pass a checkpoint file: curl -L -o medsam_vit_b.pth {FETCH}"
    ) from reason


def load_medsam(spec: ModelSpec, device: torch.device | str = "cpu") -> MedSAM:
    """The MedSAM of a spec, frozen, on a device.

    Args:
        spec: source "tiny" (embedded), a ``.pth`` / ``.pt`` / ``.safetensors`` checkpoint of SAM or MedSAM, a folder as
            ``save_sam`` writes it, a hub id "org/name@revision", or the handle of a live ``Sam`` (copied, so that the
            caller's stays as it is) or ``MedSAM``.
        device: where it shall live.

    Raises:
        ModelSourceError: the file, folder or hub repository is not there; names it and the command that fetches it.
        ValueError: the checkpoint is truncated, holds code, or is of another architecture.
    """
    given = live_object(spec)
    if isinstance(given, MedSAM):
        return given
    if given is not None:
        if not all(hasattr(given, part) for part in ("image_encoder", "prompt_encoder", "mask_decoder")):
            raise ValueError(
                f"model must be a segment_anything Sam, a MedSAM or a source string, got {type(given).__name__}"
            )
        return MedSAM(deepcopy(given), device, spec.torch_dtype)
    if spec.source == "tiny":
        return _load_folder(tiny_folder("medsam"), device, spec.torch_dtype)
    path = Path(spec.source).expanduser()
    if path.is_dir():
        return _load_folder(path, device, spec.torch_dtype)
    if path.is_file():
        return MedSAM(_load_file(path), device, spec.torch_dtype)
    if path.suffix in (".pth", ".pt", ".bin", ".safetensors") or not re.fullmatch(
        r"[\w.-]+/[\w.-]+(@[\w./-]+)?", spec.source
    ):
        raise ModelSourceError(
            f"no MedSAM checkpoint at {path}; fetch it with: curl -L -o {path} {FETCH} , or use model='tiny' or a hub "
            "id 'org/name@revision'"
        )
    return MedSAM(_load_hub(spec.source), device, spec.torch_dtype)
