"""Does the semantic controller help? ``python -m monai_diffaug.studies.semantic_features``.

On validation lesions and on normal tissue under borrowed outlines: how far the features that it predicts are from those of the unmasked
crop (the distillation error of MedSoft-Diffusion), beside three guesses that need no network; how far repainted crops are from the real
ones with and without it, same noise; and how often the validator accepts repainted lesions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from monai_diffaug.edit.options import InpaintOptions, SemanticController
from monai_diffaug.geometry.roi import crop, roi_around
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.semantic_controller import SemanticModel, load_semantic_controller
from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.bootstrap import Interval, interval
from monai_diffaug.studies.regions import CONTEXT, Region, crop_of, free_places, real_lesions
from monai_diffaug.studies.report import study_parser, write_json
from monai_diffaug.training.captions import caption, measure
from monai_diffaug.training.embedded.datasets import SOURCES
from monai_diffaug.training.embedded.train_semantic_controller import Batch, distillation_loss, encode_crops
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

__all__ = ["CONTROLLER", "COPY", "Repainting", "distillation_errors", "measure_distillation", "measure_repainting", "prompt_of"]

SOURCE = "breast_ultrasound"
CONTROLLER, COPY = "semantic controller", "copy of the masked features"
MEAN, VISIBLE = "mean of training crops", "mean of the visible patches"
TRAINING_CROPS = 64
ENCODED_AT_ONCE = 8


@dataclass(frozen=True)
class Repainting:
    """Repainted crops beside the real ones; shares and distances with 95 % intervals over the image groups.

    Attributes:
        n: regions; each was repainted with ``seeds`` seeds.
        seeds: how many.
        features: mean squared error of MedSAM's features on the hidden patches, (with, without, with - without).
        latents: mean squared error of the VAE's latents under the mask, likewise.
        accepted: share that the validator accepts, likewise; None on normal tissue.
    """

    n: int
    seeds: int
    features: tuple[Interval, Interval, Interval]
    latents: tuple[Interval, Interval, Interval]
    accepted: tuple[Interval, Interval, Interval] | None


def prompt_of(region: Region) -> str:
    """The caption of what is under a region's mask, always the same for it."""
    mask = region.mask[0].numpy() > 0
    source = next(s for s in SOURCES if s.name == SOURCE)
    measured = None if region.finding == NORMAL else measure(region.image.float().mean(0).numpy(), mask, float(mask.mean()))
    return caption(np.random.RandomState(region.index), source.modality, source.anatomy, region.finding, measured)


def _hard(region: Region, size_px: int) -> Tensor:
    """The mask in the region's square, (1, size_px, size_px) in {0, 1}."""
    return (crop(region.mask.float(), roi_around(region.mask[0], size_px, CONTEXT), size_px) > 0.5).float()


@torch.no_grad()
def _encoded(inpainter: Inpainter, model: SemanticModel, regions: Sequence[Region], images: Sequence[Tensor] | None = None) -> Batch:
    """Features and latents of the regions' squares, of the images themselves or of edits of them."""
    size = inpainter.size_px
    edits: Sequence[Tensor | None] = [None] * len(regions) if images is None else images
    pictures = torch.stack([crop_of(r, size, image=e).expand(3, -1, -1) for r, e in zip(regions, edits, strict=True)])
    masks, texts = torch.stack([_hard(r, size) for r in regions]), [prompt_of(r) for r in regions]
    parts = [
        encode_crops(inpainter, model, pictures[i : i + ENCODED_AT_ONCE], masks[i : i + ENCODED_AT_ONCE], texts[i : i + ENCODED_AT_ONCE])
        for i in range(0, len(regions), ENCODED_AT_ONCE)
    ]
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in Batch._fields if name != "captions"}
    return Batch(**tensors, captions=texts)


@torch.no_grad()
def distillation_errors(inpainter: Inpainter, model: SemanticModel, batch: Batch, training_mean: Tensor) -> dict[str, NDArray[np.float64]]:
    """The distillation error of each crop, (B,), by who predicts.

    Args:
        inpainter: encodes the captions.
        model: the controller.
        batch: encoded crops.
        training_mean: (P + 1, E) mean features of unmasked training crops, position by position.
    """
    seen, hidden = batch.seen, batch.hidden
    predicted, pooled = model.parts["controller"](seen[:, :-1], seen[:, -1], inpainter.encode_text(batch.captions), hidden)
    visible = 1 - hidden
    around = (seen[:, :-1] * visible).sum(1) / visible.sum(1).clamp(min=1)
    guesses = {
        CONTROLLER: (predicted, pooled),
        COPY: (seen[:, :-1], seen[:, -1]),
        MEAN: (training_mean[:-1].expand_as(predicted), training_mean[-1].expand_as(pooled)),
        VISIBLE: (around[:, None].expand_as(predicted), around),
    }

    def of_each(patches: Tensor, whole: Tensor) -> NDArray[np.float64]:
        one = [slice(i, i + 1) for i in range(len(hidden))]
        return np.array([float(distillation_loss(patches[i], whole[i], batch.whole[i], hidden[i])) for i in one])

    return {name: of_each(*guess) for name, guess in guesses.items()}


def _mean(values: ArrayLike, groups: Sequence[int]) -> Interval:
    column = np.asarray(values, np.float64)
    return interval(lambda picks: float(column[picks].mean()), groups)


def measure_distillation(
    inpainter: Inpainter, model: SemanticModel, kinds: dict[str, list[Region]], *, training_crops: int = TRAINING_CROPS, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Mean distillation error by kind of region and by who predicts."""
    half = max(1, training_crops // 2)
    known = real_lesions(half, split="train", source=SOURCE, seed=seed) + free_places(half, split="train", source=SOURCE, seed=seed)
    training_mean = _encoded(inpainter, model, known).whole.mean(0)
    figures = {}
    for kind, regions in kinds.items():
        errors = distillation_errors(inpainter, model, _encoded(inpainter, model, regions), training_mean)
        figures[kind] = {name: _mean(values, [r.group for r in regions]) for name, values in errors.items()}
    return figures


def measure_repainting(
    inpainter: Inpainter,
    model: SemanticModel,
    regions: Sequence[Region],
    *,
    sources: tuple[Any, Any] = ("tiny", "tiny"),
    seeds: int = 2,
    seed: int = 0,
    num_inference_steps: int = 12,
    guidance_scale: float = 3.0,
) -> Repainting:
    """Repaint each region under its own mask from noise, with and without the controller, with the same seeds.

    Args:
        inpainter, model: encode the results.
        regions: what is repainted, with the caption of what is there.
        sources: of the inpainter and of the semantic controller, as the transform takes them.
        seeds: of each region.
        seed: the first.
        num_inference_steps, guidance_scale: of the sampler.
    """
    real, groups = _encoded(inpainter, model, regions), [r.group for r in regions]
    lesions, validate = regions[0].finding != NORMAL, LatentValidate(device="cpu")
    table: dict[bool, list[NDArray[np.float64]]] = {}
    for steered in (True, False):
        inpaint = DiffusionLocalInpaint(
            sources[0],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            options=InpaintOptions(control=SemanticController(sources[1]) if steered else None),
            device="cpu",
        )
        runs = []
        for turn in range(seeds):
            own = [seed + 1000 * turn + i for i in range(len(regions))]
            edits = inpaint.apply_batch([r.image for r in regions], [r.mask for r in regions], real.captions, seeds=own)
            images = [torch.as_tensor(edit.image) for edit in edits]
            result = _encoded(inpainter, model, regions, images)
            features = _masked_mean((result.whole - real.whole)[:, :-1].square().mean(2, keepdim=True), real.hidden)
            latents = _masked_mean((result.latents - real.latents).square().mean(1, keepdim=True), real.mask)
            accepted = [
                validate(image, r.mask, r.image, seed=s).accepted if lesions else False
                for image, r, s in zip(images, regions, own, strict=True)
            ]
            runs.append(np.stack([features.double().numpy(), latents.double().numpy(), np.array(accepted, np.float64)]))
        table[steered] = list(np.mean(runs, axis=0))
    rows = [(_mean(a, groups), _mean(b, groups), _mean(a - b, groups)) for a, b in zip(table[True], table[False], strict=True)]
    return Repainting(len(regions), seeds, rows[0], rows[1], rows[2] if lesions else None)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,): the mean of each sample's values where its mask of the same shape is 1."""
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


def table(distillation: dict[str, dict[str, Interval]], repainting: dict[str, Repainting]) -> str:
    """The predicted features, then the repainted crops."""
    head = "".join(f"{f'{kind} (n={next(iter(rows.values())).n})':<30}" for kind, rows in distillation.items())
    lines = [f"{'error of the predicted features (lower is better)':<62}{head}"]
    for name in next(iter(distillation.values())):
        lines.append(f"  {name:<60}" + "".join(f"{_short(rows[name]):<30}" for rows in distillation.values()))
    lines.append(f"{'repainted against real, under the mask':<62}{'with':<28}{'without':<28}{'with - without [95 %]':<28}")
    for kind, found in repainting.items():
        rows = {"features (lower is better)": found.features, "latents (lower is better)": found.latents}
        if found.accepted is not None:
            rows["accepted by the validator"] = found.accepted
        for name, values in rows.items():
            lines.append(f"  {f'{kind} (n={found.n}, {found.seeds} seeds): {name}':<60}" + "".join(f"{_short(v):<28}" for v in values))
    return "\n".join(lines)


def _short(value: Interval) -> str:
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--semantic-controller", default="tiny", help="'tiny' (embedded) or a folder")
    parser.add_argument("--n", type=int, default=32, help="lesions, and places in normal tissue, whose features are predicted")
    parser.add_argument("--repaint", type=int, default=12, help="of each, how many are repainted")
    parser.add_argument("--training-crops", type=int, default=TRAINING_CROPS, help="behind the mean of training crops")
    parser.add_argument("--seeds", type=int, default=2, help="of each repainted region")
    args = parser.parse_args()
    inpainter = shared_model(spec_of("inpainter", args.model), "cpu", load_inpainter)
    model = shared_model(spec_of("semantic_controller", args.semantic_controller), "cpu", load_semantic_controller)
    kinds = {"lesions": real_lesions(args.n, source=SOURCE, seed=args.seed), NORMAL: free_places(args.n, source=SOURCE, seed=args.seed)}
    distillation = measure_distillation(inpainter, model, kinds, training_crops=args.training_crops, seed=args.seed)
    repainting = {
        kind: measure_repainting(
            inpainter,
            model,
            regions[: args.repaint],
            sources=(args.model, args.semantic_controller),
            seeds=args.seeds,
            seed=args.seed,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
        )
        for kind, regions in kinds.items()
    }
    sys.stdout.write(
        f"breast ultrasound, validation groups, seed {args.seed}, {args.steps} steps, guidance {args.guidance_scale:g}, controller "
        f"{args.semantic_controller}\n{table(distillation, repainting)}\n"
    )
    plain = {
        "settings": {**vars(args), "out": str(args.out)},
        "distillation": {kind: {name: asdict(v) for name, v in rows.items()} for kind, rows in distillation.items()},
        "repainting": {kind: asdict(found) for kind, found in repainting.items()},
    }
    write_json(plain, args.out)


if __name__ == "__main__":
    main()
