"""How well the embedded MedSAM outlines real findings from a jittered box."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from monai_diffaug.masks.boxes import box_around, enlarged
from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.training.embedded.datasets import SOURCES, load_samples
from monai_diffaug.training.embedded.train_medsam import instances

__all__ = ["box_dice"]


def box_dice(split: str = "validation", *, model: Any = "tiny", jitter_px: float = 20, seed: int = 0) -> dict[str, float]:
    """Mean Dice of each source's findings, each connected part prompted by its own jittered box.

    The boxes are the parts' bounding boxes with each side moved outward by 0 to ``jitter_px`` pixels at 1024 scale;
    parts below ``training.medsam.SPECK_PX`` pixels are left out. Both are MedSAM's own protocol.

    Args:
        split: "validation" or "train".
        model: a source of ``load_medsam``, or a live model.
        jitter_px: largest enlargement of a side, in pixels of a slice 1024 wide.
        seed: of the enlargements.

    Returns:
        Mean Dice in [0, 1] by source, for the sources that have masks.
    """
    medsam = shared_model(spec_of("medsam", model), "cpu", load_medsam)
    rng = np.random.RandomState(seed)
    scores: dict[str, list[float]] = defaultdict(list)
    for source in SOURCES:
        for sample in load_samples(source.name, split):
            masks = instances(sample)
            if not masks:
                continue
            embedding = medsam.encode(torch.from_numpy(sample.image).permute(2, 0, 1)[None])
            size = (masks[0].shape[0], masks[0].shape[1])
            for mask in masks:
                truth = torch.from_numpy(mask)
                box = enlarged(box_around(truth), rng.uniform(0, jitter_px, 4), size)
                found = medsam.decode(embedding, torch.tensor([box]), size)[0][0]
                scores[source.name].append(2 * int((found & truth).sum()) / int(found.sum() + truth.sum()))
    return {name: float(np.mean(values)) for name, values in scores.items()}
