from __future__ import annotations

import math

import pytest
import torch

from monai_diffaug.models.controlnet import build_controlnet
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.edge_control import edge_overlap, measure, table
from monai_diffaug.studies.masked_images import real_lesions
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.study_images import StudyData


def line(row: int, size: int = 20) -> torch.Tensor:
    edges = torch.zeros(1, size, size)
    edges[0, row] = 1
    return edges


def test_equal_edges_overlap_wholly_and_far_ones_not_at_all() -> None:
    assert edge_overlap(line(5), line(5)) == (1.0, 1.0, 1.0)
    assert edge_overlap(line(5), line(12)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("tolerance", "hit"), [(1, 0.0), (2, 1.0)])
def test_edges_within_the_tolerance_count(tolerance: int, hit: float) -> None:
    assert edge_overlap(line(5), line(7), tolerance_px=tolerance).f1 == hit


def test_surplus_edges_cost_precision_and_missing_ones_recall() -> None:
    both = torch.maximum(line(5), line(15))
    assert edge_overlap(both, line(5))[:2] == (0.5, 1.0) and edge_overlap(line(5), both)[:2] == (1.0, 0.5)
    assert edge_overlap(both, line(5)).f1 == pytest.approx(2 / 3)


def test_only_edges_in_the_region_count_and_none_anywhere_is_unknown() -> None:
    region = torch.zeros(1, 20, 20)
    region[:, :10] = 1
    assert edge_overlap(torch.maximum(line(5), line(15)), line(5), region=region).f1 == 1
    assert math.isnan(edge_overlap(line(15), line(15), region=region).f1)
    assert edge_overlap(line(15), line(5), region=region) == (0.0, 0.0, 0.0)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        edge_overlap(line(5), line(5)[0])


def test_an_untrained_controlnet_leaves_the_figures_as_without(random_inpainter: str, breast: StudyData) -> None:
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    network = build_controlnet(model.unet, model.factor)
    figures = measure(real_lesions(breast, 2), Painter(model, num_inference_steps=1), network)
    assert set(figures) == {"inside the mask", "whole image"}
    for rows in figures.values():
        assert rows["control on"] == rows["control off"] and rows["VAE round trip"]["n"] == 2
    assert "control on" in table(figures)
