"""Are edges obeyed? Overlap of the edges of generated images with their control, with the ControlNet on and off.

``python -m monai_diffaug.studies.edge_control`` prints the table on the validation groups and writes it with ``--out FILE`` as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.masks.edges import canny, control_image
from monai_diffaug.models.controlnet import ControlledDenoiser, load_controlnet
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.prompts import NORMAL
from monai_diffaug.sampling.inpaint_latents import inpaint_latents
from monai_diffaug.sampling.noise import slice_noise
from monai_diffaug.training.embedded.control_bank import ControlCrop, ControlCropSampler

__all__ = ["EdgeOverlap", "edge_overlap", "generate_controlled", "measure"]

MODES = {"inside the mask": 0.0, "whole image": 1.0}


class EdgeOverlap(NamedTuple):
    """How well two edge maps agree, each in [0, 1].

    Attributes:
        precision: share of the found edges that are wanted.
        recall: share of the wanted edges that were found.
        f1: their harmonic mean.
    """

    precision: float
    recall: float
    f1: float


def edge_overlap(found: Tensor, wanted: Tensor, *, region: Tensor | None = None, tolerance_px: int = 2) -> EdgeOverlap:
    """Boundary F-measure (Martin et al., PAMI 2004): an edge pixel counts when one of the other map is within the tolerance.

    Args:
        found: (..., h, w) edges of the generated image; above 0.5 is an edge.
        wanted: edges of the control, same shape.
        region: same shape, non-zero where edges are compared; a partner may lie outside. Default everywhere.
        tolerance_px: largest distance along rows and columns in pixels.

    Returns:
        All nan when neither map has an edge in the region; 0 when only one has.

    Raises:
        ValueError: shapes differ or a negative tolerance.
    """
    if found.shape != wanted.shape or (region is not None and region.shape != found.shape):
        shapes = [tuple(t.shape) for t in (found, wanted, region) if t is not None]
        raise ValueError(f"found, wanted and region must have one shape, got {', '.join(map(str, shapes))}")
    if tolerance_px < 0:
        raise ValueError(f"tolerance_px must be >= 0, got {tolerance_px}")
    inside = torch.ones_like(found, dtype=torch.bool) if region is None else region != 0
    a, b = found > 0.5, wanted > 0.5
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


@torch.no_grad()
def generate_controlled(
    model: Inpainter,
    controlnet: Any,
    crops: list[ControlCrop],
    control: Tensor,
    *,
    scale: float,
    seed: int = 0,
    num_inference_steps: int = 12,
    guidance_scale: float = 3.0,
) -> Tensor:
    """Repaint crops under their masks.

    Args:
        model: the inpainter.
        controlnet: one that fits it.
        crops: B crops of the model's size.
        control: (B, 1, size, size) in [0, 1].
        scale: weight of the control; 0 switches it off.
        seed: of the noise; the same noise for every scale.
        num_inference_steps: steps of the sampler.
        guidance_scale: classifier-free guidance.

    Returns:
        (B, 3, size, size) float32 in [-1, 1].
    """
    image, mask = torch.stack([c.image for c in crops]), torch.stack([c.mask for c in crops])
    pictures = torch.cat([image, image * (mask < 0.5)]) if model.takes_mask else image
    latents = model.encode(pictures)
    count = len(crops)
    noise = slice_noise(seed, range(count), tuple(latents.shape[1:]))
    result = inpaint_latents(
        ControlledDenoiser(model, controlnet, control, scale=scale),
        model.scheduler,
        clean=latents[:count],
        masked=latents[count:] if model.takes_mask else None,
        noise=noise.to(model.device, model.dtype),
        mask=model.latent_mask(mask),
        context=model.encode_text([c.text for c in crops]),
        negative_context=model.encode_text([""]).expand(count, -1, -1),
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
    )
    return model.decode(result).clamp(-1, 1)


def measure(
    model: Any = "tiny",
    controlnet: Any = "tiny",
    *,
    count: int = 48,
    num_inference_steps: int = 12,
    guidance_scale: float = 3.0,
    tolerance_px: int = 2,
    sources: tuple[str, ...] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Edge overlap on validation crops, pixels of all crops pooled, by mode and by what made the image.

    In the first mode lesions are repainted and edges are compared inside the mask, the outline of the lesion among them; in the
    second everything is regenerated and compared. "VAE round trip" is the image itself, encoded and decoded: the best that the
    latents allow. It stays below 1 inside the mask, where the outline is wanted even if the image has no edge there.

    Args:
        model: "tiny", a folder, a hub id or a live Inpainter.
        controlnet: "tiny", a folder, a hub id or a live ControlNetModel.
        count: crops for each mode.
        num_inference_steps: steps of the sampler.
        guidance_scale: classifier-free guidance.
        tolerance_px: see ``edge_overlap``.
        sources: names of the data sets; default all.
        seed: of the crops and the noise.

    Returns:
        mode -> row -> precision, recall, f1 and n, the number of crops.
    """
    inpainter = shared_model(spec_of("inpainter", model), "cpu", load_inpainter)
    network = shared_model(spec_of("controlnet", controlnet), "cpu", load_controlnet)
    generate = partial(generate_controlled, inpainter, network, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for mode, whole_share in MODES.items():
        sampler = ControlCropSampler("validation", seed, sources, whole_share=whole_share, size_px=inpainter.size_px)
        edges: dict[str, list[Tensor]] = {"control off": [], "control on": [], "VAE round trip": []}
        wanted: list[Tensor] = []
        regions: list[Tensor] = []
        for start in range(0, count, 8):
            crops = [_drawn(sampler, lesion=whole_share == 0) for _ in range(min(8, count - start))]
            image, region = torch.stack([c.image for c in crops]), torch.stack([c.mask for c in crops])
            control = control_image((image + 1) / 2, torch.stack([c.outline for c in crops]))
            with torch.no_grad():
                results = {"VAE round trip": inpainter.decode(inpainter.encode(image)).clamp(-1, 1)}
            for row, scale in (("control off", 0.0), ("control on", 1.0)):
                results[row] = generate(crops, control, scale=scale, seed=seed + start)
            for row, pictures in results.items():
                edges[row].append(canny((pictures + 1) / 2))
            wanted.append(control)
            regions.append(region)
        figures[mode] = {
            row: {**_pooled(found, wanted, regions, tolerance_px)._asdict(), "n": float(count)} for row, found in edges.items()
        }
    return figures


def _drawn(sampler: ControlCropSampler, *, lesion: bool) -> ControlCrop:
    """The next crop; with ``lesion`` the next that shows one, for the outline of a borrowed shape is no edge of the image."""
    while True:
        crop = sampler.draw_control_crop()
        if not lesion or crop.finding != NORMAL:
            return crop


def _pooled(found: list[Tensor], wanted: list[Tensor], regions: list[Tensor], tolerance_px: int) -> EdgeOverlap:
    return edge_overlap(torch.cat(found), torch.cat(wanted), region=torch.cat(regions), tolerance_px=tolerance_px)


def table(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """Precision, recall and F1, a line for each mode and row."""
    lines = [f"{'edges compared':<18}{'image':<18}{'precision':>10}{'recall':>10}{'F1':>10}{'n':>6}"]
    for mode, rows in figures.items():
        for row, values in rows.items():
            numbers = "".join(f"{values[name]:>10.3f}" for name in EdgeOverlap._fields)
            lines.append(f"{mode:<18}{row:<18}{numbers}{values['n']:>6.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--controlnet", default="tiny")
    parser.add_argument("--count", type=int, default=48, help="crops for each mode")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--tolerance-px", type=int, default=2)
    parser.add_argument("--source", action="append", help="name of a data set; may be repeated; default all")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    figures = measure(
        args.model,
        args.controlnet,
        count=args.count,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        tolerance_px=args.tolerance_px,
        sources=tuple(args.source) if args.source else None,
    )
    sys.stdout.write(table(figures) + "\n")
    if args.out:
        part = args.out.with_suffix(".part")
        part.write_text(json.dumps(figures, indent=2) + "\n")
        part.replace(args.out)


if __name__ == "__main__":
    main()
