"""The box-prompted Dice of the embedded MedSAM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_diffaug.models.medsam import MedSAM
from monai_diffaug.studies import medsam_boxes as evaluation
from monai_diffaug.training.embedded.datasets import SOURCES, Sample


class FilledBox(MedSAM):
    """Answers with the box, rounded inward."""

    def __init__(self) -> None:
        self.box_as_mask = False

    def encode(self, slices: Tensor, batch_size: int = 4) -> Tensor:
        return torch.zeros(len(slices), 1)

    def decode(self, embeddings: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        mask = torch.zeros(1, *size_hw, dtype=torch.bool)
        x0, y0, x1, y1 = boxes_xyxy[0].tolist()
        mask[0, int(np.ceil(y0)) : int(y1) + 1, int(np.ceil(x0)) : int(x1) + 1] = True
        return mask, torch.ones(1)


@pytest.fixture(autouse=True)
def two_rectangles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breast ultrasound alone: one image with two rectangular lesions and a speck."""
    label = np.zeros((256, 256), np.uint8)
    label[20:60, 30:90] = 1
    label[100:140, 30:90] = 2
    label[200, 200] = 1

    def load(name: str, split: str, *_: Any) -> tuple[Sample, ...]:
        sample = Sample(SOURCES[0], 0, 0, np.zeros((256, 256, 3), np.uint8), label, "")
        return (sample,) if name == "breast_ultrasound" and split == "validation" else ()

    monkeypatch.setattr(evaluation, "load_samples", load)


def test_a_model_that_fills_the_box_is_right_about_rectangles_without_jitter() -> None:
    assert evaluation.box_dice(model=FilledBox(), jitter_px=0) == {"breast_ultrasound": 1.0}


def test_the_jitter_is_reproducible_and_costs_dice() -> None:
    first, second = (evaluation.box_dice(model=FilledBox(), jitter_px=20)["breast_ultrasound"] for _ in range(2))
    assert first == second
    assert 0.8 < first < 0.98
