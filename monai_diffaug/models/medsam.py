"""MedSAM: box-prompted masks with segment_anything's networks, in the steps of MedSAM's official inference."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.medsam_resize import cubic_matrix, resize_cubic
from monai_diffaug.models.registry import ModelSpec, live_object, tiny_folder
from monai_diffaug.models.sam_block import use_fused_blocks
from monai_diffaug.models.sam_decoder import decode_boxes
from monai_diffaug.models.sam_weights import FETCH, TINY_CONFIG, build_sam, config_of, load_sam, sam_names, save_sam

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

HUB_FILES = ("model.safetensors", "medsam_vit_b.pth", "pytorch_model.bin")
ENCODED_AT_ONCE = 4  # slices in one call of the image encoder
DECODED_AT_ONCE = 8  # boxes in one call of the mask decoder


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
        use_fused_blocks(self.sam)
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
            raise ValueError(f"slices must be (S, 1 or 3, h, w), got {tuple(slices.shape)}; pick or merge channels before MedSAM")
        resized = resize_cubic(slices.to(self.device), self.image_size)
        low, high = resized.amin((1, 2, 3), keepdim=True), resized.amax((1, 2, 3), keepdim=True)
        return ((resized - low) / (high - low).clamp_min(1e-8)).expand(-1, 3, -1, -1)

    @torch.no_grad()
    def encode(self, slices: Tensor, batch_size: int = ENCODED_AT_ONCE) -> Tensor:
        """Embeddings (S, E, g, g) float32 of slices (S, 1 or 3, h, w); each serves any number of boxes.

        In the wrapper's types inside ``torch.autocast`` too, here and in ``decode``.
        """
        with torch.autocast(self.device.type, enabled=False):
            chunks = torch.split(slices, batch_size)
            return torch.cat([self.sam.image_encoder(self.prepare(chunk).to(self.dtype)).float() for chunk in chunks])

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
            raise ValueError(f"boxes_xyxy must be ({len(embeddings)}, 4), one box an embedding, got {tuple(boxes_xyxy.shape)}")
        height, width = size_hw
        extent = torch.tensor([width, height, width, height], dtype=torch.float32, device=self.device)
        boxes = boxes_xyxy.to(self.device, torch.float32) / extent * self.image_size
        masks, predicted_iou = [], []
        for some, where in zip(embeddings.to(self.device).split(DECODED_AT_ONCE), boxes.split(DECODED_AT_ONCE), strict=True):
            with torch.autocast(self.device.type, enabled=False):
                sparse, dense = prompt_with_boxes(self.sam, where, self.box_as_mask)
                logits, quality = decode_boxes(self.sam, some, sparse, dense)
            probability = F.interpolate(torch.sigmoid(logits), size=(height, width), mode="bilinear", align_corners=False)
            masks.append(probability[:, 0] > 0.5)
            predicted_iou.append(quality[:, 0])
        return torch.cat(masks), torch.cat(predicted_iou)


def _load_folder(folder: Path, device: torch.device | str, dtype: torch.dtype) -> MedSAM:
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    if "image_size" not in config:  # not by save_sam: a repository as ``hf download --local-dir`` lays it down
        found = next((folder / name for name in HUB_FILES if (folder / name).is_file()), None)
        if found is not None:
            return MedSAM(load_sam(found), device, dtype)
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ModelSourceError(f"{file} is missing; {folder} must hold config.json and model.safetensors as save_sam writes them")
    return MedSAM(load_sam(weights_file, config), device, dtype, box_as_mask=bool(config.get("box_as_mask", False)))


def _load_hub(source: str) -> Sam:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = source.partition("@")
    command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    reason: Exception | None = None
    for name in HUB_FILES:
        try:
            return load_sam(Path(hf_hub_download(repository, name, revision=revision or None)))
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
            ``save_sam`` writes it or with the files of a hub repository, a hub id "org/name@revision", or the handle of a live
            ``Sam`` (copied, so that the caller's stays as it is) or ``MedSAM``.
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
            raise ValueError(f"model must be a segment_anything Sam, a MedSAM or a source string, got {type(given).__name__}")
        return MedSAM(deepcopy(given), device, spec.torch_dtype)
    if spec.source == "tiny":
        return _load_folder(tiny_folder("medsam"), device, spec.torch_dtype)
    path = Path(spec.source).expanduser()
    if path.is_dir():
        return _load_folder(path, device, spec.torch_dtype)
    if path.is_file():
        return MedSAM(load_sam(path), device, spec.torch_dtype)
    if path.suffix in (".pth", ".pt", ".bin", ".safetensors") or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", spec.source):
        raise ModelSourceError(
            f"no MedSAM checkpoint at {path}; fetch it with: curl -L -o {path} {FETCH} , or use model='tiny' or a hub "
            "id 'org/name@revision'"
        )
    return MedSAM(_load_hub(spec.source), device, spec.torch_dtype)
