"""Data items for a bundle's data set, from the ``.npz`` files of real images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from monai_diffaug.training.embedded.datasets import load_samples

__all__ = ["segmentation_items"]


def segmentation_items(source: str, split: str, dataset_dir: str, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Images and labels as a MONAI data list, each a MetaTensor that knows its name (for ``SaveImaged`` and ``MetricsSaver``).

    Args:
        source: a name in ``monai_diffaug.training.embedded.datasets.SOURCES``, e.g. "breast_ultrasound".
        split: "train" or "validation"; near-duplicate images are wholly in one of them.
        dataset_dir: folder of the ``.npz`` files.
        limit: take so many images, spread evenly over the split; None takes all.

    Returns:
        One dict an image: "image" (1, H, W) uint8 (the first channel), "label" (1, H, W) uint8 class ids.

    Raises:
        FileNotFoundError: the file is not in the folder.
        ValueError: unknown split, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, or None for all images, got {limit}")
    samples = load_samples(source, split, dataset_dir)
    if limit is not None and limit < len(samples):
        samples = tuple(samples[i] for i in np.linspace(0, len(samples) - 1, limit).astype(int))
    items = []
    for sample in samples:
        name = {"filename_or_obj": f"{source}_{sample.index:04d}.png"}
        image = torch.from_numpy(np.ascontiguousarray(sample.image[None, ..., 0]))
        label = torch.from_numpy(np.ascontiguousarray(sample.label[None]))
        items.append({"image": MetaTensor(image, meta=dict(name)), "label": MetaTensor(label, meta=dict(name))})
    return items
