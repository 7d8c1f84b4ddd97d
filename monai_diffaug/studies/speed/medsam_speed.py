"""MedSAM against its published script: equality of embeddings and masks first, then interleaved rounds."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.masks.boxes import box_around
from monai_diffaug.models.medsam import DECODED_AT_ONCE, ENCODED_AT_ONCE, MedSAM, prompt_with_boxes
from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.models.sam_decoder import decode_boxes
from monai_diffaug.models.sam_weights import load_sam
from monai_diffaug.studies.speed.equality import TOLERANCE
from monai_diffaug.studies.speed.machine import multiplies_bfloat16
from monai_diffaug.studies.speed.official_medsam import official_masks
from monai_diffaug.studies.speed.peak_memory import peak_bytes
from monai_diffaug.studies.speed.speed_settings import Amount
from monai_diffaug.studies.speed.timed_volumes import Volume, make_volume
from monai_diffaug.studies.speed.timing import interleaved, median_interval, ratios
from monai_diffaug.transforms.medsam_mask import MedSAMMask

__all__ = ["encodings_in_propagation", "measure_masks", "measure_medsam"]

logger = logging.getLogger(__name__)

SIZE_PX, SLICES = 512, 8
DIFFERENT_PIXELS = 1e-3  # share of a mask in which the rounding of a probability of one half may fall either way
POSITIONS_SPREAD = 0.2  # segment_anything starts relative positions at zero, where a mistake could not be seen


def measure_medsam(device: torch.device, amount: Amount) -> dict[str, Any]:
    """A row for the embedded model and one for ViT-B at 1024 px, in float32 and where the machine multiplies it, bfloat16."""
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
    return {"masks": rows, "encodings_a_slice_in_propagation": encodings_in_propagation(plain)}


def random_vit_b() -> Any:
    """SAM's ViT-B with random weights, relative positions included."""
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
    """One row: the gate in float32 and, when it is passed, seconds and the ratio to the script in float32.

    Args:
        plain: a Sam of ``segment_anything``.
        volume: whose slices are outlined, from the box of the lesion.
        device: of both arms.
        dtype: of this package's image encoder; the script knows float32 only.
        rounds: interleaved rounds.
        box_as_mask: the embedded model's prompt.
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
        "dtype": str(dtype).removeprefix("torch."),
        "gate": {"largest_difference": largest, "allowed": allowed, "different_pixels": different},
        "passed": largest <= allowed and different <= DIFFERENT_PIXELS,
    }
    if not row["passed"]:
        return row
    ours = exact if dtype == torch.float32 else MedSAM(deepcopy(plain), device, dtype, box_as_mask=box_as_mask)
    bare = _bare(ours, exact.prepare(volume.slices).to(dtype), boxes / size[0] * exact.image_size)
    seconds = interleaved({"ours": lambda: masks_of(ours), "script": script, "bare": bare}, rounds, device)
    row["seconds"] = {name: median_interval(values) for name, values in seconds.items()}
    row["faster_than"] = {"script": ratios(seconds["script"], seconds["ours"])}
    row["over_bare"] = ratios(seconds["ours"], seconds["bare"])
    peaks = {"ours": peak_bytes(lambda: masks_of(ours), device), "script": peak_bytes(script, device)}
    row["peak_mb"] = {name: round(peak / 1e6, 1) for name, peak in peaks.items()}
    return row


def _bare(medsam: MedSAM, pixels: Tensor, boxes: Tensor) -> Callable[[], None]:
    """The networks' forwards on tensors that are there already, in the batches of ``MedSAM``."""
    boxes = boxes.to(medsam.device)

    @torch.no_grad()
    def run() -> None:
        embeddings = torch.cat([medsam.sam.image_encoder(chunk).float() for chunk in pixels.split(ENCODED_AT_ONCE)])
        for some, where in zip(embeddings.split(DECODED_AT_ONCE), boxes.split(DECODED_AT_ONCE), strict=True):
            decode_boxes(medsam.sam, some, *prompt_with_boxes(medsam.sam, where, medsam.box_as_mask))

    return run


def encodings_in_propagation(plain: Any, depth: int = 6) -> float:
    """How often the image encoder sees a slice while a mask walks through a volume: 1 means once."""
    medsam = MedSAM(deepcopy(plain), box_as_mask=True)
    volume = make_volume(SIZE_PX // 4, depth)
    seen = []
    hook = medsam.sam.image_encoder.register_forward_hook(lambda module, given, result: seen.append(len(given[0])))
    try:
        MedSAMMask(medsam, propagate=True, min_iou=0.0, jitter_px=0.0).apply(volume.image, volume.mask, seed=0)
    finally:
        hook.remove()
    return sum(seen) / depth
