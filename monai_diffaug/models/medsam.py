"""MedSAM: masks from box prompts with segment_anything's networks, in the steps of MedSAM's official inference."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.models.medsam_resize import resize_cubic
from monai_diffaug.models.registry import ModelSpec, live_object
from monai_diffaug.models.sam_decoder import decode_boxes
from monai_diffaug.models.sam_encoder import use_fused_blocks
from monai_diffaug.models.sam_weights import FETCH, TINY_CONFIG, build_sam, config_of, load_sam, save_sam
from monai_diffaug.models.sources import CONFIG_FILE, WEIGHTS_FILE, locate, require_files

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

__all__ = ["TINY_CONFIG", "MedSAM", "box_coverage", "build_sam", "config_of", "load_medsam", "prompt_with_boxes", "save_sam"]

CHECKPOINTS = (WEIGHTS_FILE, "medsam_vit_b.pth", "pytorch_model.bin")  # in a hub repository, the preferred one first
HUB_FILES = tuple((CONFIG_FILE, name) for name in CHECKPOINTS)
ENCODED_AT_ONCE = 4  # slices per call of the image encoder
DECODED_AT_ONCE = 8  # boxes per call of the mask decoder


def box_coverage(boxes_xyxy: Tensor, image_size: int, grid: int) -> Tensor:
    """(P, 1, grid, grid): share of each cell that lies in each box, scaled to the range from -1 (none) to 1 (all).

    Args:
        boxes_xyxy: (P, 4) in pixels of the model's square input.
        image_size: side of that input in pixels.
        grid: cells per side.

    >>> box_coverage(torch.tensor([[0.0, 0, 8, 4]]), 16, 4)[0, 0].tolist()[:2]
    [[1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]]
    """
    edges = torch.arange(grid, device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
    x0, y0, x1, y1 = (boxes_xyxy * (grid / image_size))[:, :, None].unbind(1)
    along_x = (torch.minimum(x1, edges + 1) - torch.maximum(x0, edges)).clamp(0, 1)
    along_y = (torch.minimum(y1, edges + 1) - torch.maximum(y0, edges)).clamp(0, 1)
    return (along_y[:, :, None] * along_x[:, None, :] * 2 - 1)[:, None]


def prompt_with_boxes(sam: Sam, boxes_xyxy: Tensor, box_as_mask: bool) -> tuple[Tensor, Tensor]:
    """Sparse and dense prompt embeddings of boxes (P, 4) in pixels of the model's input.

    With ``box_as_mask`` the filled box is also SAM's mask prompt. With corner tokens only, a network trained for minutes is worse than
    an ellipse drawn in the box (IoU 0.47 against 0.63 after 1 200 steps).
    """
    encoder = sam.prompt_encoder
    masks = box_coverage(boxes_xyxy, encoder.input_image_size[0], encoder.mask_input_size[0]) if box_as_mask else None
    sparse, dense = encoder(points=None, boxes=boxes_xyxy, masks=masks)
    return sparse, dense


class MedSAM:
    """A ``segment_anything`` Sam prompted with one box per slice, as in MedSAM's official inference.

    Args:
        sam: the networks; the wrapper moves, freezes and casts them.
        device: of the networks.
        dtype: floating type of the image encoder; prompt encoder and mask decoder are small and stay float32.
        box_as_mask: give the filled box as SAM's mask prompt in addition to the corner tokens, as the embedded model was trained;
            False as in MedSAM.
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
        """Input of the encoder: three channels, cubic resize to the model's size, minimum and maximum of each slice scaled to [0, 1].

        The result stays in floating point; the official script, which reads 8-bit images, truncates to 8 bit after the resize.

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
        """Embeddings (S, E, g, g) float32 of slices (S, 1 or 3, h, w); one embedding can be decoded with any number of boxes.

        ``torch.autocast`` has no effect, here and in ``decode``.
        """
        with torch.autocast(self.device.type, enabled=False):
            chunks = torch.split(slices, batch_size)
            return torch.cat([self.sam.image_encoder(self.prepare(chunk).to(self.dtype)).float() for chunk in chunks])

    @torch.no_grad()
    def decode(self, embeddings: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Masks of one box per slice.

        Args:
            embeddings: (S, E, g, g) from ``encode``.
            boxes_xyxy: (S, 4) in pixels of the slices: x along the width w, y along the height h.
            size_hw: (h, w) of the slices.

        Returns:
            Masks (S, h, w) bool and the predicted IoU (S,) float32 of each.
        """
        if boxes_xyxy.shape != (len(embeddings), 4):
            raise ValueError(f"boxes_xyxy must be ({len(embeddings)}, 4), one box per embedding, got {tuple(boxes_xyxy.shape)}")
        height, width = size_hw
        extent = torch.tensor([width, height, width, height], dtype=torch.float32, device=self.device)
        boxes = boxes_xyxy.to(self.device, torch.float32) / extent * self.image_size
        masks, predicted_iou = [], []
        for batch, batch_boxes in zip(embeddings.to(self.device).split(DECODED_AT_ONCE), boxes.split(DECODED_AT_ONCE), strict=True):
            with torch.autocast(self.device.type, enabled=False):
                sparse, dense = prompt_with_boxes(self.sam, batch_boxes, self.box_as_mask)
                logits, quality = decode_boxes(self.sam, batch, sparse, dense)
            probability = F.interpolate(torch.sigmoid(logits), size=(height, width), mode="bilinear", align_corners=False)
            masks.append(probability[:, 0] > 0.5)
            predicted_iou.append(quality[:, 0])
        return torch.cat(masks), torch.cat(predicted_iou)


def load_medsam(spec: ModelSpec, device: torch.device | str = "cpu") -> MedSAM:
    """Load a frozen MedSAM: "tiny" (embedded), a checkpoint file of SAM or MedSAM, a folder, a hub id, or a live object.

    A folder is one that ``save_sam`` wrote, or has the files of a hub repository. A live object is a ``Sam`` (copied, so that the
    caller's is not changed) or a ``MedSAM``.

    Raises:
        ModelSourceError: the file, folder or hub repository is missing; the message names it and the command that fetches it.
        ValueError: the checkpoint is truncated, contains code, is of another architecture, or lacks weights.
    """
    live = live_object(spec)
    if isinstance(live, MedSAM):
        return live
    if live is not None:
        if not all(hasattr(live, part) for part in ("image_encoder", "prompt_encoder", "mask_decoder")):
            raise ValueError(f"model must be a segment_anything Sam, a MedSAM or a source string, got {type(live).__name__}")
        return MedSAM(deepcopy(live), device, spec.torch_dtype)
    target = spec.source if spec.source.endswith((".pth", ".pt")) else "medsam_vit_b.pth"
    advice = f"fetch a checkpoint with: curl -L -o {target} {FETCH} , or use model='tiny'"
    path = locate("medsam", spec.source, advice, HUB_FILES)
    if path.is_file():
        return MedSAM(load_sam(path), device, spec.torch_dtype)
    config = json.loads((path / CONFIG_FILE).read_text()) if (path / CONFIG_FILE).is_file() else {}
    checkpoint = next((path / name for name in CHECKPOINTS if (path / name).is_file()), None)
    if "image_size" not in config and checkpoint is not None:  # not by save_sam: the files of a hub repository
        return MedSAM(load_sam(checkpoint), device, spec.torch_dtype)
    require_files(path, (CONFIG_FILE, WEIGHTS_FILE), f"{path} must hold {CONFIG_FILE} and {WEIGHTS_FILE} as save_sam writes them; {advice}")
    sam = load_sam(path / WEIGHTS_FILE, config)
    return MedSAM(sam, device, spec.torch_dtype, box_as_mask=bool(config.get("box_as_mask", False)))
