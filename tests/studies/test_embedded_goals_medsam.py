"""The box-prompted Dice of a MedSAM."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from monai_diffaug.models.medsam import MedSAM
from monai_diffaug.studies.embedded_goals import box_dice
from monai_diffaug.studies.study_images import StudyData


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


@pytest.fixture
def rectangles(tmp_path: Path) -> StudyData:
    """One image with two rectangular lesions and a speck."""
    label = np.zeros((256, 256), np.uint8)
    label[20:60, 30:90] = 1
    label[100:140, 30:90] = 2
    label[200, 200] = 1
    Image.fromarray(np.zeros_like(label)).save(tmp_path / "image.png")
    Image.fromarray(label).save(tmp_path / "label.png")
    row = {"image": "image.png", "label": "label.png", "finding": {"1": "benign mass", "2": "malignant mass"}, "dataset": "drawn"}
    (tmp_path / "list.json").write_text(json.dumps({"modality": "ultrasound", "anatomy": "breast", "validation": [row]}))
    return StudyData.open(tmp_path / "list.json")


def test_a_model_that_fills_the_box_is_right_about_rectangles_without_jitter(rectangles: StudyData) -> None:
    assert box_dice(rectangles, model=FilledBox(), jitter_px=0) == {"drawn": 1.0}


def test_the_jitter_is_reproducible_and_costs_dice(rectangles: StudyData) -> None:
    first, second = (box_dice(rectangles, model=FilledBox(), jitter_px=20)["drawn"] for _ in range(2))
    assert first == second
    assert 0.8 < first < 0.98
