"""MedSAM against its published script: equal results first."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from monai_diffaug.errors import MissingExtraError
from monai_diffaug.models import sam_encoder
from monai_diffaug.models.medsam import MedSAM, load_medsam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.models.sam_weights import TINY_CONFIG, build_sam
from monai_diffaug.studies.speed.medsam_speed import encodings_in_propagation, measure_masks, official_masks
from monai_diffaug.studies.speed.timed_edits import make_volume

CPU = torch.device("cpu")
CONFIG = {**TINY_CONFIG, "image_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": [1], "window_size": 4}


def sam_with_positions() -> Any:
    torch.manual_seed(0)
    sam = build_sam(CONFIG)
    with torch.no_grad():
        for name, value in sam.named_parameters():
            if "rel_pos" in name:
                value.normal_(0, 0.5)
    return sam.eval()


def test_a_row_is_timed_if_the_masks_equal_those_of_the_script() -> None:
    row = measure_masks(sam_with_positions(), make_volume(90, 3), CPU, torch.float32, 1)
    assert row["passed"] and row["gate"]["largest_difference"] > 0
    assert row["seconds"].keys() == {"ours", "script", "bare"} and row["slices"] == 3


def test_without_relative_positions_the_results_differ_and_have_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_encoder, "relative", lambda positions, size: torch.zeros(size, size, positions.shape[1]))
    row = measure_masks(sam_with_positions(), make_volume(64, 2), CPU, torch.float32, 1)
    assert row["passed"] is False and "seconds" not in row


def test_propagation_through_a_volume_encodes_each_slice_once() -> None:
    medsam = load_medsam(ModelSpec("medsam"))
    assert isinstance(medsam, MedSAM)
    assert encodings_in_propagation(medsam.sam) == 1.0


def test_the_error_without_scikit_image_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.transform", None)
    with pytest.raises(MissingExtraError, match=r"monai_diffaug\[demo\]"):
        official_masks(sam_with_positions(), torch.zeros(1, 1, 8, 8), torch.tensor([[0.0, 0, 8, 8]]))
