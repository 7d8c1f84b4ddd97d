"""Memorisation: is a generated lesion nearer to a training lesion than real lesions are to each other?

Paints lesions into normal validation images and compares them, as pixels and as latents, with all training lesions of the data set. The
yardstick are the validation lesions, which the model has not seen. Squares hold the lesion's surroundings too, so they show a training
*image* that is repeated; a lesion that is copied into other surroundings is far from it. The guard of ``LatentValidated(novelty=...)``
looks for such copies, and is measured too: see ``monai_diffaug.data.lesion_bank``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from monai_diffaug.geometry.roi import crop, roi_around
from monai_diffaug.studies.copies import guard_table, measure_guard
from monai_diffaug.studies.distribution import latent_features
from monai_diffaug.studies.masked_images import MaskedImage, free_places, real_lesions, squares_of
from monai_diffaug.studies.painter import Painter, painted_lesions
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import TRAINING, StudyData

__all__ = ["Lesions", "Memorisation", "gather", "lesion_views", "measure", "memorisation", "table"]

SIDE_PX = 32
CONTEXT = 1.5
LATENT_CROP_PX = 128


@dataclass(frozen=True)
class Memorisation:
    """Distances of generated and of real lesions to their nearest training lesions."""

    generated: NDArray[np.float64]  # (n,)
    nearest: NDArray[np.int64]  # (n,) index of the training lesion
    real: NDArray[np.float64]  # (k,)
    threshold: float  # the ``quantile`` of ``real``
    share_below: float  # share of the generated lesions below it; a generator that copies nothing stays near ``quantile``
    median_ratio: float  # median of ``generated`` over median of ``real``; well below 1 means copies
    quantile: float

    @property
    def suspects(self) -> NDArray[np.int64]:
        """Indices of the generated lesions below the threshold, the nearest first."""
        order = np.argsort(self.generated)
        below: NDArray[np.int64] = order[self.generated[order] < self.threshold]
        return below


def memorisation(generated: ArrayLike, training: ArrayLike, held_out: ArrayLike, *, quantile: float = 0.05) -> Memorisation:
    """Compare nearest-neighbour distances (Euclidean) in a feature space to the (m, d) lesions that the generator was trained on.

    Generated and held-out lesions, the yardstick, are (n, d), or (n, v, d) with v views of each, the nearest of which counts.
    """
    table = np.asarray(training, np.float64)
    if table.ndim != 2 or len(table) < 2 or not 0 < quantile < 1:
        raise ValueError(f"training must be (m, d) with m >= 2 and quantile in (0, 1), got {table.shape} and {quantile}")
    distances = _distances(np.asarray(generated, np.float64), table, "generated")
    real = _distances(np.asarray(held_out, np.float64), table, "held_out").min(1)
    nearest, threshold = distances.min(1), float(np.quantile(real, quantile))
    ratio = float(np.median(nearest) / max(float(np.median(real)), 1e-12))
    return Memorisation(nearest, distances.argmin(1), real, threshold, float((nearest < threshold).mean()), ratio, quantile)


def _distances(items: NDArray[np.float64], table: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """(n, m) Euclidean; with views the smallest over them."""
    views = items[:, None] if items.ndim == 2 else items
    if views.ndim != 3 or views.shape[2] != table.shape[1] or len(views) == 0:
        raise ValueError(f"{name} must be (n, {table.shape[1]}) or (n, views, {table.shape[1]}) with n >= 1, got {items.shape}")
    flat_views = torch.from_numpy(views.reshape(-1, views.shape[2]))
    flat = torch.cdist(flat_views, torch.from_numpy(table), compute_mode="donot_use_mm_for_euclid_dist")  # exact for copies
    result: NDArray[np.float64] = flat.numpy().reshape(len(views), views.shape[1], len(table)).min(1)
    return result


def lesion_views(image: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """A lesion as pixels (2, 1024): its square at 32 x 32, grey, zero mean and unit variance, as it is and mirrored left to right.

    The image is (C, h, w) in any unit, the mask (1, h, w) or (h, w), not empty.
    """
    picture = torch.as_tensor(np.asarray(image, np.float64)).float().mean(0, keepdim=True)
    region = torch.as_tensor(np.asarray(mask)).reshape(picture.shape[-2:])
    cut = crop(picture, roi_around(region, SIDE_PX, CONTEXT, min_side=8), SIDE_PX)[0].double().numpy()
    centred = (cut - cut.mean()) / max(float(cut.std()), 1e-6)
    return np.stack([centred.ravel(), centred[:, ::-1].ravel()])


def _pixels(lesions: Sequence[MaskedImage]) -> NDArray[np.float64]:
    return np.stack([lesion_views(one.image, one.mask) for one in lesions])


def _latents(lesions: Sequence[MaskedImage], model: str) -> NDArray[np.float64]:
    """(n, 2, d): of each square and of its mirror image."""
    crops = squares_of(lesions, LATENT_CROP_PX)
    return np.stack([latent_features(view, model=model)[0] for view in (crops, crops.flip(-1))], 1).astype(np.float64)


class Lesions(NamedTuple):
    """Lesions painted by the model, lesions that it was trained on, and real ones that it has not seen."""

    painted: list[MaskedImage]
    training: list[MaskedImage]
    held_out: list[MaskedImage]


def gather(data: StudyData, n: int, painter: Painter, training: int | None = None) -> Lesions:
    """Paint ``n`` lesions into normal validation images, and read the real ones, at most ``training`` of each list."""
    painted, _ = painted_lesions(data, n, painter)
    known = real_lesions(data, training, section=TRAINING, seed=painter.seed)
    return Lesions(painted, known, real_lesions(data, training, seed=painter.seed))


def measure(lesions: Lesions, *, model: str = "tiny", quantile: float = 0.05) -> dict[str, Memorisation]:
    """Painted lesions against the training lesions, by feature; ``model`` is the inpainter whose autoencoder makes the latents."""
    figures = {}
    for name, features in (("pixels", _pixels), ("latents", lambda lesions: _latents(lesions, model))):
        painted, training, held_out = (features(each) for each in lesions)
        figures[name] = memorisation(painted, training[:, 0], held_out, quantile=quantile)
    return figures


def table(figures: dict[str, Memorisation], indices: Sequence[int], suspects: int = 3) -> str:
    """A line per feature, and the generated lesions nearest to a training image."""
    names = {"pixels": f"squares, {SIDE_PX} x {SIDE_PX} grey pixels", "latents": "squares, VAE latents, 4 x 4"}
    lines = [f"{'features':<34}{'generated':>10}{'held out':>10}{'training':>10}{'below 5 % of real':>19}{'median ratio':>14}"]
    for name, each in figures.items():
        counts = f"{len(each.generated):>10}{len(each.real):>10}{len(indices):>10}"
        lines.append(f"{names[name]:<34}{counts}{100 * each.share_below:>17.0f} %{each.median_ratio:>14.2f}")
    for name, each in figures.items():
        near = [f"{each.generated[i]:.2f} to training image {indices[int(each.nearest[i])]}" for i in each.suspects[:suspects]]
        lines.append(f"{name}: nearest of those below {each.threshold:.2f}: {'; '.join(near) or 'none'}")
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    lesions = gather(data, options.n, Painter.of(options), options.training)
    figures, indices = measure(lesions, model=options.model), [one.index for one in lesions.training]
    backgrounds = free_places(data, min(options.copies, len(lesions.training)), seed=options.seed)
    guard = measure_guard(*lesions, backgrounds, seed=options.seed)
    heading = f"lesions painted into normal {data.title} of the validation groups, seed {options.seed}"
    text = f"{heading}\n{table(figures, indices)}\n{guard_table(guard)}"
    return text, {"training_indices": indices, "guard": guard, **figures}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--n", type=int, default=32, help="lesions painted")
    parser.add_argument("--training", type=int, help="training lesions at most; default all")
    parser.add_argument("--copies", type=int, default=40, help="copies of training lesions per disguise that the guard judges; 0 none")
    return run_study(parser, _study, arguments, needs="labelled lesions and normal images", preferred=("breast_ultrasound",))
