"""Does the semantic controller help?

On validation lesions and on normal tissue under borrowed outlines: the distance of the features that it predicts to those of the unmasked
crop (the distillation error of MedSoft-Diffusion), next to three guesses that need no network; the distance of repainted crops to the real
ones with and without it, same noise; and how often the validator accepts repainted lesions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, SemanticController
from monai_diffaug.geometry.roi import crop, roi_around
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.semantic_controller import SemanticModel, load_semantic_controller
from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.bootstrap import Interval, mean_interval
from monai_diffaug.studies.masked_images import CONTEXT, MaskedImage, free_places, real_lesions, squares_of
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import TRAINING, StudyData
from monai_diffaug.training.captions import caption, measure
from monai_diffaug.training.semantic_loss import SemanticCrops, distillation_loss, encode_semantic_crops
from monai_diffaug.transforms.latent_validate import LatentValidate

__all__ = ["CONTROLLER", "COPY", "Repainting", "distillation_errors", "encoded", "measure_distillation", "measure_repainting", "prompt_of"]

CONTROLLER, COPY = "semantic controller", "copy of the masked features"
MEAN, VISIBLE = "mean of training crops", "mean of the visible patches"
TRAINING_CROPS = 64
BATCH_SIZE = 8


@dataclass(frozen=True)
class Repainting:
    """``n`` repainted crops against the real ones, each (with controller, without, with - without), 95 % intervals over the groups."""

    n: int
    seeds: int  # of each crop
    features: tuple[Interval, Interval, Interval]  # mean squared error of MedSAM's features on the hidden patches
    latents: tuple[Interval, Interval, Interval]  # mean squared error of the VAE's latents under the mask
    accepted: tuple[Interval, Interval, Interval] | None  # share that the validator accepts; None on normal tissue


def prompt_of(one: MaskedImage) -> str:
    """The caption of what is under the mask, always the same for an image."""
    mask = one.mask_hw
    attributes = None if one.is_normal else measure(one.image.float().mean(0).numpy(), mask, float(mask.mean()))
    return caption(np.random.RandomState(one.index), one.modality, one.anatomy, one.finding, attributes)


def _hard(one: MaskedImage, size_px: int) -> Tensor:
    """The mask in its square, (1, size_px, size_px) in {0, 1}."""
    return (crop(one.mask.float(), roi_around(one.mask[0], size_px, CONTEXT), size_px) > 0.5).float()


@torch.no_grad()
def encoded(inpainter: Inpainter, model: SemanticModel, images: Sequence[MaskedImage]) -> SemanticCrops:
    """Features and latents of the squares around the masks."""
    size = inpainter.size_px
    pictures, masks = squares_of(images, size), torch.stack([_hard(one, size) for one in images])
    texts = [prompt_of(one) for one in images]
    batches = (slice(i, i + BATCH_SIZE) for i in range(0, len(images), BATCH_SIZE))
    parts = [encode_semantic_crops(inpainter, model, pictures[b], masks[b], texts[b]) for b in batches]
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in SemanticCrops._fields if name != "captions"}
    return SemanticCrops(**tensors, captions=texts)


@torch.no_grad()
def distillation_errors(
    inpainter: Inpainter, model: SemanticModel, crops: SemanticCrops, training_mean: Tensor
) -> dict[str, NDArray[np.float64]]:
    """The distillation error of each crop, (B,), of the controller and of three guesses; ``training_mean`` is (P + 1, E)."""
    masked, hidden = crops.visible, crops.hidden
    predicted, pooled = model.parts["controller"](masked[:, :-1], masked[:, -1], inpainter.encode_text(crops.captions), hidden)
    visible = 1 - hidden
    around = (masked[:, :-1] * visible).sum(1) / visible.sum(1).clamp(min=1)
    guesses = {
        CONTROLLER: (predicted, pooled),
        COPY: (masked[:, :-1], masked[:, -1]),
        MEAN: (training_mean[:-1].expand_as(predicted), training_mean[-1].expand_as(pooled)),
        VISIBLE: (around[:, None].expand_as(predicted), around),
    }

    def of_each(patches: Tensor, whole: Tensor) -> NDArray[np.float64]:
        each = [slice(i, i + 1) for i in range(len(hidden))]
        return np.array([float(distillation_loss(patches[i], whole[i], crops.whole[i], hidden[i])) for i in each])

    return {name: of_each(*guess) for name, guess in guesses.items()}


def measure_distillation(
    inpainter: Inpainter, model: SemanticModel, kinds: dict[str, list[MaskedImage]], training: Sequence[MaskedImage]
) -> dict[str, dict[str, Interval]]:
    """Mean distillation error by kind of image, of the controller and of the guesses; one of them is the mean of the training crops."""
    training_mean = encoded(inpainter, model, training).whole.mean(0)
    figures = {}
    for kind, images in kinds.items():
        errors = distillation_errors(inpainter, model, encoded(inpainter, model, images), training_mean)
        figures[kind] = {name: mean_interval(values, [one.group for one in images]) for name, values in errors.items()}
    return figures


def measure_repainting(
    inpainter: Inpainter, model: SemanticModel, images: Sequence[MaskedImage], painter: Painter, controller: Any = "tiny", *, seeds: int = 2
) -> Repainting:
    """Repaint each image from noise with and without the controller, same seeds; ``inpainter`` and ``model`` encode the results."""
    real, groups = encoded(inpainter, model, images), [one.group for one in images]
    has_lesions, validate = not images[0].is_normal, LatentValidate(device="cpu")
    means: list[NDArray[np.float64]] = []
    for control in (SemanticController(controller), None):
        runs = []
        for first_seed in range(painter.seed, painter.seed + 1000 * seeds, 1000):
            edits = painter.paint(images, real.captions, InpaintOptions(control=control), first_seed=first_seed)
            result = encoded(inpainter, model, edits)
            features = _masked_mean((result.whole - real.whole)[:, :-1].square().mean(2, keepdim=True), real.hidden)
            latents = _masked_mean((result.latents - real.latents).square().mean(1, keepdim=True), real.mask)
            accepted = [
                has_lesions and validate(edit.image, one.mask, one.image, seed=first_seed + i).accepted
                for i, (edit, one) in enumerate(zip(edits, images, strict=True))
            ]
            runs.append(np.stack([features.double().numpy(), latents.double().numpy(), np.array(accepted, np.float64)]))
        means.append(np.mean(runs, axis=0))
    rows = [(mean_interval(a, groups), mean_interval(b, groups), mean_interval(a - b, groups)) for a, b in zip(*means, strict=True)]
    return Repainting(len(images), seeds, rows[0], rows[1], rows[2] if has_lesions else None)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,): the mean of each crop's values where its mask of the same shape is 1."""
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


def table(distillation: dict[str, dict[str, Interval]], repainting: dict[str, Repainting]) -> str:
    """The predicted features, then the repainted crops."""
    head = "".join(f"{f'{kind} (n={next(iter(rows.values())).n})':<30}" for kind, rows in distillation.items())
    lines = [f"{'error of the predicted features (lower is better)':<62}{head}"]
    for name in next(iter(distillation.values())):
        lines.append(f"  {name:<60}" + "".join(f"{_short(rows[name]):<30}" for rows in distillation.values()))
    lines.append(f"{'repainted against real, under the mask':<62}{'with':<28}{'without':<28}{'with - without [95 %]':<28}")
    for kind, each in repainting.items():
        rows = {"features (lower is better)": each.features, "latents (lower is better)": each.latents}
        if each.accepted is not None:
            rows["accepted by the validator"] = each.accepted
        for name, values in rows.items():
            lines.append(f"  {f'{kind} (n={each.n}, {each.seeds} seeds): {name}':<60}" + "".join(f"{_short(v):<28}" for v in values))
    return "\n".join(lines)


def _short(value: Interval) -> str:
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    inpainter = shared_model(spec_of("inpainter", options.model), "cpu", load_inpainter)
    model = shared_model(spec_of("semantic_controller", options.semantic_controller), "cpu", load_semantic_controller)
    painter, n, seed, half = Painter.of(options), options.n, options.seed, max(1, options.training_crops // 2)
    kinds = {"lesions": real_lesions(data, n, seed=seed), NORMAL: free_places(data, n, seed=seed)}
    training = real_lesions(data, half, section=TRAINING, seed=seed) + free_places(data, half, section=TRAINING, seed=seed)
    distillation = measure_distillation(inpainter, model, kinds, training)
    repainting = {
        kind: measure_repainting(inpainter, model, images[: options.repaint], painter, options.semantic_controller, seeds=options.seeds)
        for kind, images in kinds.items()
    }
    heading = f"{data.title}, validation groups, {painter}, controller {options.semantic_controller}"
    return f"{heading}\n{table(distillation, repainting)}", {"distillation": distillation, "repainting": repainting}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--semantic-controller", default="tiny", metavar="SOURCE", help="'tiny' (embedded) or a folder")
    parser.add_argument("--n", type=int, default=32, help="lesions, and places in normal tissue, whose features are predicted")
    parser.add_argument("--repaint", type=int, default=12, help="number of each that are repainted")
    parser.add_argument("--training-crops", type=int, default=TRAINING_CROPS, help="crops behind the mean of training crops")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each repainted image")
    return run_study(parser, _study, arguments, needs="labelled lesions and normal images", preferred=("breast_ultrasound",))
