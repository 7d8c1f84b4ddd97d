"""Labels for brain MRI slices that have one tumour box each: outlines by the embedded MedSAM, without the doubtful ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import ModelSpec

__all__ = ["BOXED_PACK", "CLASSES", "boxed_labels", "boxed_rows", "twins"]

BOXED_PACK = "brain_mri_boxes"
CLASSES = ("pituitary tumour", "meningioma", "glioma")  # by ``image_class`` of the pack; label value 1 to 3
MIN_IOU = 0.5  # predicted by MedSAM; below, many masks are wrong (seen on 200 of them)
FILL_RANGE = (0.35, 0.97)  # share of its box that a mask covers; an ellipse covers .79
TWIN_CORRELATION = 0.97  # of thumbnails; above, two slices are near-duplicates
THUMBNAIL_PX = 32
AT_ONCE = 8


def twins(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark the images that have a near-duplicate among others, by the correlation of thumbnails of 32 x 32 pixels.

    Args:
        images: (N, H, W).
        others: (M, H, W).

    Returns:
        (N,) True where the largest correlation is above .97.

    >>> images = np.random.RandomState(0).randint(0, 255, (3, 64, 64)).astype(np.uint8)
    >>> twins(images, images[1:2]).tolist()
    [False, True, False]
    """
    return np.asarray((_thumbnails(images) @ _thumbnails(others).T).max(1) > TWIN_CORRELATION)


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    n, height, width = images.shape
    cells = images.reshape(n, THUMBNAIL_PX, height // THUMBNAIL_PX, THUMBNAIL_PX, width // THUMBNAIL_PX).mean((2, 4), dtype=np.float64)
    rows = cells.reshape(n, -1)
    rows = rows - rows.mean(1, keepdims=True)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9))


def boxed_labels(
    images: NDArray[np.uint8], boxes_xyxy: NDArray[np.float32], model: str = "tiny"
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Outline one object per image in its box.

    Args:
        images: (N, H, W).
        boxes_xyxy: (N, 4) in pixels, x along the width.
        model: source of the MedSAM.

    Returns:
        Masks (N, H, W), cut at their boxes, and (N,) True where the mask can be trusted: MedSAM predicts an IoU of .5 or more, and the
        mask covers 35 to 97 % of its box.
    """
    medsam = load_medsam(ModelSpec("medsam", model), torch.device("cpu"))
    masks, is_sure = [], []
    for start in range(0, len(images), AT_ONCE):
        some = torch.from_numpy(images[start : start + AT_ONCE])[:, None].float()
        boxes = torch.from_numpy(boxes_xyxy[start : start + AT_ONCE])
        predicted, iou = medsam.decode(medsam.encode(some), boxes, (some.shape[-2], some.shape[-1]))
        for mask, box, reached in zip(predicted.numpy(), boxes.tolist(), iou.tolist(), strict=True):
            x0, y0, x1, y1 = (round(v) for v in box)
            inside = np.zeros_like(mask)
            inside[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
            fill = inside.sum() / max((y1 - y0) * (x1 - x0), 1)
            masks.append(inside)
            is_sure.append(reached >= MIN_IOU and FILL_RANGE[0] <= fill <= FILL_RANGE[1])
    return np.stack(masks), np.array(is_sure)


def boxed_rows(packs: Path, out: Path, similar: Sequence[Path] = ()) -> dict[str, list[dict[str, Any]]]:
    """Write the trusted slices of ``brain_mri_boxes.npz`` and their labels as PNG; returns entries of the training list.

    All are for training: a label that a model drew is no reference for validation. Slices with a near-duplicate in one of the ``similar``
    packs are left out, since that could be a validation image there.

    Raises:
        FileNotFoundError: the folder has no such pack.
    """
    from PIL import Image

    file = packs / f"{BOXED_PACK}.npz"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; --packs must be the folder of the .npz files")
    with np.load(file) as archive:
        images, boxes = archive["images"], archive["boxes_xyxy"]
        classes, groups = archive["image_class"].astype(np.int64), archive["groups"].astype(np.int64)
    masks, uses = boxed_labels(images, boxes)
    for pack in similar:
        with np.load(pack) as archive:
            others = archive["images"]
        uses &= ~twins(images, others if others.ndim == 3 else others[..., 0])
    (out / BOXED_PACK).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in np.flatnonzero(uses).tolist():
        names = {"image": f"{BOXED_PACK}/{i:04d}.png", "label": f"{BOXED_PACK}/{i:04d}_label.png"}
        Image.fromarray(images[i]).save(out / names["image"], compress_level=1)
        Image.fromarray(masks[i].astype(np.uint8) * np.uint8(classes[i] + 1)).save(out / names["label"], compress_level=1)
        finding = {str(value): word for value, word in enumerate(CLASSES, start=1)}
        words = {"finding": finding, "modality": "mri", "anatomy": "brain", "dataset": BOXED_PACK}
        rows.append({**names, **words, "group": str(groups[i]), "index": i})
    return {"training": rows}
