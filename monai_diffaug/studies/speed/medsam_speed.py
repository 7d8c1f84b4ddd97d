"""MedSAM against its published script: embeddings and masks are compared, then timed in interleaved rounds."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.errors import MissingExtraError
from monai_diffaug.masks.boxes import box_around
from monai_diffaug.models.medsam import DECODED_AT_ONCE, ENCODED_AT_ONCE, MedSAM, box_coverage, prompt_with_boxes
from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.models.sam_decoder import decode_boxes
from monai_diffaug.models.sam_weights import load_sam
from monai_diffaug.studies.speed.equality import TOLERANCE
from monai_diffaug.studies.speed.machine import multiplies_bfloat16
from monai_diffaug.studies.speed.time_and_memory import interleaved, medians, peaks_mb, ratios
from monai_diffaug.studies.speed.timed_edits import Amount, Volume, dtype_name, make_volume
from monai_diffaug.transforms.medsam_mask import MedSAMMask

__all__ = ["encodings_in_propagation", "measure_masks", "measure_medsam", "official_masks"]

logger = logging.getLogger(__name__)

SIZE_PX, SLICES = 512, 8
DIFFERENT_PIXELS = 1e-3  # allowed share of a mask: probabilities near 0.5 may be rounded either way
POSITIONS_SPREAD = 0.2  # segment_anything starts relative positions at zero, with which a mistake has no effect


def measure_medsam(device: torch.device, amount: Amount) -> dict[str, Any]:
    """Rows for the embedded model and for ViT-B at 1024 px, in float32 and, if the machine multiplies it, in bfloat16."""
    folder = tiny_folder("medsam")
    config = json.loads((folder / "config.json").read_text())
    plain = load_sam(folder / "model.safetensors", config)
    cases: list[tuple[str, Any, bool, int]] = [("embedded", plain, bool(config.get("box_as_mask")), SLICES)]
    if amount.larger_models:
        cases.append(("ViT-B", random_vit_b(), False, SLICES if device.type == "cuda" else 1))
    types = [torch.float32, *([torch.bfloat16] if multiplies_bfloat16(device) else [])]
    rows = []
    for name, sam, box_as_mask, depth in cases:
        volume = make_volume(SIZE_PX, depth)
        for dtype in types:
            logger.info("MedSAM, %s, %s", name, dtype)
            rows.append({"model": name, **measure_masks(sam, volume, device, dtype, amount.rounds, box_as_mask=box_as_mask)})
    return {"masks": rows, "encodings_per_slice_in_propagation": encodings_in_propagation(plain)}


def random_vit_b() -> Any:
    """SAM's ViT-B with random weights, also of the relative positions."""
    from segment_anything import sam_model_registry

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sam = sam_model_registry["vit_b"]()
        with torch.no_grad():
            for name, value in sam.named_parameters():
                if "rel_pos" in name:
                    value.normal_(0, POSITIONS_SPREAD)
    return sam


def measure_masks(
    plain: Any, volume: Volume, device: torch.device, dtype: torch.dtype, rounds: int, *, box_as_mask: bool = False
) -> dict[str, Any]:
    """One row: the gate in float32 and, if it is passed, seconds and the ratio to the script.

    Each slice gets a mask from the box of its lesion. ``dtype`` is that of this package's image encoder; the script always uses float32.
    """
    theirs = deepcopy(plain).to(device).eval().requires_grad_(False)
    exact = MedSAM(deepcopy(plain), device, box_as_mask=box_as_mask)
    size = (volume.slices.shape[-2], volume.slices.shape[-1])
    boxes = torch.tensor([box_around(mask[0] > 0) for mask in volume.masks], dtype=torch.float32)

    def masks_of(medsam: MedSAM) -> tuple[Tensor, Tensor]:
        embeddings = medsam.encode(volume.slices)
        return medsam.decode(embeddings, boxes, size)[0], embeddings

    def script() -> tuple[Tensor, Tensor]:
        return official_masks(theirs, volume.slices, boxes, box_as_mask=box_as_mask)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        (masks, embeddings), (their_masks, their_embeddings) = masks_of(exact), script()
    largest = float((embeddings - their_embeddings).abs().max())
    allowed = TOLERANCE * max(1.0, float(their_embeddings.abs().max()))
    different = float((masks != their_masks).float().mean())
    row: dict[str, Any] = {
        "size_px": size[0],
        "input_px": exact.image_size,
        "slices": len(volume.slices),
        "dtype": dtype_name(dtype),
        "gate": {"largest_difference": largest, "allowed": allowed, "different_pixels": different},
        "passed": largest <= allowed and different <= DIFFERENT_PIXELS,
    }
    if not row["passed"]:
        return row
    ours = exact if dtype == torch.float32 else MedSAM(deepcopy(plain), device, dtype, box_as_mask=box_as_mask)
    arms: dict[str, Callable[[], object]] = {"ours": lambda: masks_of(ours), "script": script}
    bare = _bare(ours, exact.prepare(volume.slices).to(dtype), boxes / size[0] * exact.image_size)
    seconds = interleaved({**arms, "bare": bare}, rounds, device)
    return {
        **row,
        "seconds": medians(seconds),
        "faster_than": {"script": ratios(seconds["script"], seconds["ours"])},
        "over_bare": ratios(seconds["ours"], seconds["bare"]),
        "peak_mb": peaks_mb(arms, device),
    }


@torch.no_grad()
def official_masks(sam: Any, slices: Tensor, boxes_xyxy: Tensor, *, box_as_mask: bool = False) -> tuple[Tensor, Tensor]:
    """The steps of ``MedSAM_Inference.py`` for each slice: resize, min-max, encoder, box prompt, decoder, threshold.

    The script rounds the resized image to 8 bit; here it stays in floating point, so that the results can be compared.

    Slices are (S, 1, h, w), boxes (S, 4) in pixels of the slices; returns masks (S, h, w) bool and embeddings (S, E, g, g).

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    try:
        from skimage.transform import resize
    except ImportError as error:
        raise MissingExtraError(f"the published script resizes by scikit-image ({error}): pip install monai_diffaug[demo]") from error

    size, device = sam.image_encoder.img_size, sam.mask_decoder.iou_token.weight.device
    height, width = slices.shape[-2:]
    masks, embeddings = [], []
    for image, box in zip(slices, boxes_xyxy, strict=True):
        rgb = np.repeat(image[0].numpy().astype(np.float64)[..., None], 3, -1)
        resized = resize(rgb, (size, size), order=3, preserve_range=True, anti_aliasing=True)
        resized = (resized - resized.min()) / np.clip(resized.max() - resized.min(), 1e-8, None)
        pixels = torch.tensor(resized).float().permute(2, 0, 1)[None].to(device)
        embedding = sam.image_encoder(pixels)
        scaled = (box / torch.tensor([width, height, width, height]) * size)[None].to(device)
        filled = box_coverage(scaled, size, sam.prompt_encoder.mask_input_size[0]) if box_as_mask else None
        sparse, dense = sam.prompt_encoder(points=None, boxes=scaled[:, None], masks=filled)
        logits, _ = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)
        probability = F.interpolate(torch.sigmoid(logits), size=(height, width), mode="bilinear", align_corners=False)
        masks.append(probability[0, 0] > 0.5)
        embeddings.append(embedding[0])
    return torch.stack(masks), torch.stack(embeddings)


def _bare(medsam: MedSAM, pixels: Tensor, boxes: Tensor) -> Callable[[], None]:
    """The forward passes of the networks on existing tensors, in the batches of ``MedSAM``."""
    boxes = boxes.to(medsam.device)

    @torch.no_grad()
    def run() -> None:
        embeddings = torch.cat([medsam.sam.image_encoder(chunk).float() for chunk in pixels.split(ENCODED_AT_ONCE)])
        for batch, batch_boxes in zip(embeddings.split(DECODED_AT_ONCE), boxes.split(DECODED_AT_ONCE), strict=True):
            decode_boxes(medsam.sam, batch, *prompt_with_boxes(medsam.sam, batch_boxes, medsam.box_as_mask))

    return run


def encodings_in_propagation(plain: Any, depth: int = 6) -> float:
    """Encodings per slice while a mask is propagated through a volume; 1 is optimal."""
    medsam = MedSAM(deepcopy(plain), box_as_mask=True)
    volume = make_volume(SIZE_PX // 4, depth)
    counts: list[int] = []
    hook = medsam.sam.image_encoder.register_forward_hook(lambda module, args, result: counts.append(len(args[0])))
    try:
        MedSAMMask(medsam, propagate=True, min_iou=0.0, jitter_px=0.0).apply(volume.image, volume.mask, seed=0)
    finally:
        hook.remove()
    return sum(counts) / depth
