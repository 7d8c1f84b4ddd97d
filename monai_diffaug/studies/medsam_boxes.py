"""Dice of MedSAM's outlines of real findings, prompted by jittered boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from monai_diffaug.masks.boxes import box_around, connected_components, enlarged
from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.studies.study_images import VALIDATION, StudyData

__all__ = ["box_dice"]

SPECK_PX = 25  # MedSAM drops parts below 100 px on slices of 512, which is 25 on 256


def box_dice(data: StudyData, *, section: str = VALIDATION, model: Any = "tiny", jitter_px: float = 20, seed: int = 0) -> dict[str, float]:
    """Mean Dice of each data set's findings, each connected part prompted by its own jittered box.

    The boxes are the parts' bounding boxes with each side moved outward by 0 to ``jitter_px`` pixels at 1024 scale; parts below
    ``SPECK_PX`` pixels are left out. Both are MedSAM's own protocol.

    Args:
        data: the data sets.
        section: "validation" or "training".
        model: a source of ``load_medsam``, or a live model.
        jitter_px: largest enlargement of a side, in pixels of a slice 1024 wide.
        seed: of the enlargements.

    Returns:
        Mean Dice in [0, 1] by data set, for those that have masks.
    """
    medsam = shared_model(spec_of("medsam", model), "cpu", load_medsam)
    rng = np.random.RandomState(seed)
    scores: dict[str, list[float]] = {}
    for image in data.images(section):
        parts = [part for _, mask in image.findings for part in connected_components(torch.from_numpy(mask))]
        parts = [part for part in parts if part.sum() >= SPECK_PX]
        if not parts:
            continue
        embedding = medsam.encode(image.image.expand(3, -1, -1)[None])
        size = (parts[0].shape[0], parts[0].shape[1])
        for part in parts:
            box = enlarged(box_around(part), rng.uniform(0, jitter_px, 4), size)
            outline = medsam.decode(embedding, torch.tensor([box]), size)[0][0]
            scores.setdefault(image.dataset, []).append(2 * int((outline & part).sum()) / int(outline.sum() + part.sum()))
    return {name: float(np.mean(values)) for name, values in scores.items()}
