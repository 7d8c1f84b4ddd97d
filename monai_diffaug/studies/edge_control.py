"""Are edges obeyed? Overlap of the edges of repainted images with their control, with the ControlNet on and off.

Lesions are repainted under their masks and whole slices from their edges and the lesion's outline, as ``EdgeMap`` and
``DiffusionLocalInpaint`` do it in a pipeline. Edges are compared in the image's own pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.edit.options import ControlNet, InpaintOptions, SoftEdge
from monai_diffaug.masks.soft_edge import composite
from monai_diffaug.studies.masked_images import MaskedImage, real_lesions
from monai_diffaug.studies.painter import Painter, through_vae
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData
from monai_diffaug.transforms.edge_map import EdgeMap

__all__ = ["EdgeOverlap", "edge_overlap", "measure", "table"]

MODES = ("inside the mask", "whole image")
HARD = SoftEdge(width_px_at_512=0.0)


class EdgeOverlap(NamedTuple):
    """Agreement of two edge maps, each figure in [0, 1]."""

    precision: float  # share of the image's edges that are in the control
    recall: float  # share of the control's edges that are in the image
    f1: float  # their harmonic mean


def edge_overlap(edges: Tensor, target: Tensor, *, region: Tensor | None = None, tolerance_px: int = 2) -> EdgeOverlap:
    """Boundary F-measure (Martin et al., PAMI 2004): an edge pixel counts when the other map has one within the tolerance.

    Args:
        edges, target: (..., h, w) edges of the generated image and of the control; above 0.5 is an edge.
        region: same shape, non-zero where edges are compared; a matching edge may lie outside. Default everywhere.
        tolerance_px: largest distance along rows and columns in pixels.

    Returns:
        All nan when neither map has an edge in the region; 0 when only one has.

    Raises:
        ValueError: shapes differ or a negative tolerance.
    """
    if edges.shape != target.shape or (region is not None and region.shape != edges.shape):
        shapes = [tuple(t.shape) for t in (edges, target, region) if t is not None]
        raise ValueError(f"edges, target and region must have one shape, got {', '.join(map(str, shapes))}")
    if tolerance_px < 0:
        raise ValueError(f"tolerance_px must be >= 0, got {tolerance_px}")
    inside = torch.ones_like(edges, dtype=torch.bool) if region is None else region != 0
    a, b = edges > 0.5, target > 0.5
    hits_a, hits_b = a & inside & _near(b, tolerance_px), b & inside & _near(a, tolerance_px)
    n_a, n_b = int((a & inside).sum()), int((b & inside).sum())
    if n_a == 0 and n_b == 0:
        return EdgeOverlap(float("nan"), float("nan"), float("nan"))
    precision = float(hits_a.sum()) / n_a if n_a else 0.0
    recall = float(hits_b.sum()) / n_b if n_b else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return EdgeOverlap(precision, recall, f1)


def _near(edges: Tensor, tolerance_px: int) -> Tensor:
    flat = edges.reshape(-1, 1, *edges.shape[-2:]).float()
    return F.max_pool2d(flat, 2 * tolerance_px + 1, 1, tolerance_px).reshape(edges.shape) > 0.5


def measure(
    lesions: Sequence[MaskedImage], painter: Painter, controlnet: Any = "tiny", *, tolerance_px: int = 2
) -> dict[str, dict[str, dict[str, float]]]:
    """Edge overlap, pixels of all images pooled, by mode and by what made the image.

    In the first mode lesions are repainted and edges are compared inside the mask, the outline of the lesion among them; in the second
    the whole slice is made from the control, and everything is compared. "VAE round trip" is the image itself, encoded and decoded: the
    best that the latents allow. It stays below 1 inside the mask, where the control has the outline even if the image has no edge there.
    Returns mode -> row -> precision, recall, f1 and n, the number of images.
    """
    edges_of = EdgeMap()
    controls = [torch.as_tensor(edges_of(one.image, one.mask)) for one in lesions]
    prompts = [one.prompt for one in lesions]
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for mode in MODES:
        images = [one if mode == MODES[0] else replace(one, mask=torch.ones_like(one.mask)) for one in lesions]
        results = {"control off": painter.paint(images, prompts, InpaintOptions(soft_edge=HARD))}
        steered = InpaintOptions(soft_edge=HARD, control=ControlNet(controlnet))
        results["control on"] = painter.paint(images, prompts, steered, controls=controls)
        results["VAE round trip"] = [replace(one, image=_decoded(one, painter.model)) for one in images]
        target, region = _stacked(controls), _stacked([one.mask for one in images])
        figures[mode] = {}
        for row, edits in results.items():
            edges = _stacked([torch.as_tensor(edges_of(edit.image, torch.zeros_like(edit.mask))) for edit in edits])
            overlap = edge_overlap(edges, target, region=region, tolerance_px=tolerance_px)
            figures[mode][row] = {**overlap._asdict(), "n": float(len(images))}
    return figures


def _decoded(one: MaskedImage, model: Any) -> Tensor:
    return composite(one.image, through_vae(one.image, one.mask[0], model), one.mask.float())


def _stacked(maps: Sequence[Tensor]) -> Tensor:
    """Maps (1, h, w) of several sizes as (n, 1, H, W); what is added is zero."""
    height, width = (max(one.shape[axis] for one in maps) for axis in (1, 2))
    return torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in maps])


def table(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """Precision, recall and F1, one line per mode and row."""
    lines = [f"{'edges compared':<18}{'image':<18}{'precision':>10}{'recall':>10}{'F1':>10}{'n':>6}"]
    for mode, rows in figures.items():
        for row, values in rows.items():
            numbers = "".join(f"{values[name]:>10.3f}" for name in EdgeOverlap._fields)
            lines.append(f"{mode:<18}{row:<18}{numbers}{values['n']:>6.0f}")
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    lesions = real_lesions(data, options.count, seed=options.seed)
    figures = measure(lesions, Painter.of(options), options.controlnet, tolerance_px=options.tolerance_px)
    return table(figures), figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--controlnet", default="tiny", metavar="SOURCE")
    parser.add_argument("--count", type=int, default=48, help="lesions, of all data sets together")
    parser.add_argument("--tolerance-px", type=int, default=2, help="distance at which an edge still counts")
    return run_study(parser, _study, arguments, needs="labelled lesions")
