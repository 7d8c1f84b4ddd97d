"""FID and KID of given features; a figure carries the feature extractor and the numbers of images it was computed from.

Compares lesions painted into normal validation images with the real validation lesions, and for reference real training lesions (another
sample of the same kind) and the places before they were painted.

FID: Heusel et al. 2017; KID: Binkowski et al. 2018. Neither means anything without its extractor and n, so both are required and kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import shared_model, spec_of
from monai_diffaug.models.semantic_controller import MedSAMFeatures
from monai_diffaug.studies.masked_images import real_lesions, squares_of
from monai_diffaug.studies.painter import Painter, painted_lesions
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import TRAINING, StudyData

__all__ = ["DistributionDistance", "fid", "kid", "latent_features", "measure", "medsam_features", "table"]

LATENT_GRID = 4


@dataclass(frozen=True)
class DistributionDistance:
    """FID or KID, with the extractor of the features, the numbers of images and the dimensions of a feature vector.

    ``value`` is 0 for equal distributions (KID is unbiased and may fall below 0), ``spread`` the standard deviation over subsets, if any.
    """

    metric: str
    value: float
    spread: float
    extractor: str
    n_real: int
    n_generated: int
    dimensions: int


def fid(real: ArrayLike, generated: ArrayLike, *, extractor: str) -> DistributionDistance:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); the root's trace from the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2).

    Features are (n, d) and (m, d), with the name of their extractor. FID of few images is biased upward: compare figures of the same n
    only, or use KID. ValueError: not two finite tables of the same width with two rows or more, or no extractor named.
    """
    x, y = _tables(real, generated, extractor)
    s1, s2 = np.cov(x, rowvar=False, ddof=1).reshape(x.shape[1], -1), np.cov(y, rowvar=False, ddof=1).reshape(x.shape[1], -1)
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    value = float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * shared)
    return DistributionDistance("FID", value, 0.0, extractor, len(x), len(y), x.shape[1])


def kid(
    real: ArrayLike, generated: ArrayLike, *, extractor: str, subset_size: int | None = None, subsets: int = 100, seed: int = 0
) -> DistributionDistance:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, of features as for ``fid``.

    With a ``subset_size`` the mean over ``subsets`` random subsets of that many of each, as in the paper; else of all at once.
    """
    x, y = _tables(real, generated, extractor)
    if subset_size is None:
        values = [_unbiased(x, y)]
    else:
        if not 2 <= subset_size <= min(len(x), len(y)):
            raise ValueError(f"subset_size must be in 2 to {min(len(x), len(y))}, the smaller number of images, got {subset_size}")
        rng = np.random.RandomState(seed)
        values = [_unbiased(x[rng.choice(len(x), subset_size, False)], y[rng.choice(len(y), subset_size, False)]) for _ in range(subsets)]
    spread = float(np.std(values)) if len(values) > 1 else 0.0
    return DistributionDistance("KID", float(np.mean(values)), spread, extractor, len(x), len(y), x.shape[1])


def _unbiased(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = (a @ b.T / a.shape[1] + 1) ** 3
        return result

    n, m = len(x), len(y)
    kxx, kyy = kernel(x, x), kernel(y, y)
    within = (kxx.sum() - np.trace(kxx)) / (n * (n - 1)) + (kyy.sum() - np.trace(kyy)) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


def _tables(real: ArrayLike, generated: ArrayLike, extractor: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features must be (n, d) and (m, d) with n, m >= 2, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features have non-finite values")
    if not extractor.strip():
        raise ValueError("name the feature extractor: a distance without it cannot be compared with anything")
    return x, y


@torch.no_grad()
def latent_features(crops: Tensor, model: str = "tiny", batch_size: int = 16) -> tuple[NDArray[np.float32], str]:
    """Latents of the inpainter's VAE, averaged on a 4 x 4 grid: features that need no download.

    Crops are (n, 3, h, w) in [-1, 1]. Returns (n, 16 * latent channels) float32 and the name to pass as ``extractor``.
    """
    inpainter = shared_model(spec_of("inpainter", model), "cpu", load_inpainter)
    parts: Iterable[Any] = (F.adaptive_avg_pool2d(inpainter.encode(chunk), LATENT_GRID).flatten(1) for chunk in crops.split(batch_size))
    features: NDArray[np.float32] = torch.cat([part.float() for part in parts]).numpy()
    return features, f"VAE latents of {model!r}, {LATENT_GRID} x {LATENT_GRID} means of {tuple(crops.shape[-2:])} crops"


@torch.no_grad()
def medsam_features(crops: Tensor, *, model: str = "tiny", batch_size: int = 8) -> tuple[NDArray[np.float32], str]:
    """Features of a MedSAM's image encoder, averaged over the crop: (n, channels of the encoder); as ``latent_features`` otherwise."""
    encoder = MedSAMFeatures(shared_model(spec_of("medsam", model), "cpu", load_medsam), grid=1)
    features: NDArray[np.float32] = torch.cat([encoder(chunk)[1] for chunk in crops.split(batch_size)]).numpy()
    return features, f"MedSAM image encoder {model!r}, mean over {tuple(crops.shape[-2:])} crops"


EXTRACTORS: dict[str, Callable[[Tensor], tuple[NDArray[np.float32], str]]] = {"latents": latent_features, "medsam": medsam_features}
CROP_PX = 128


def measure(data: StudyData, n: int, painter: Painter) -> dict[str, list[DistributionDistance]]:
    """KID and FID of ``n`` squares around a mask to those of ``n`` (or all) real validation lesions, with each of ``EXTRACTORS``.

    The squares are painted lesions, training lesions, and the painted places before.
    """
    painted, places = painted_lesions(data, n, painter)
    training = real_lesions(data, n, section=TRAINING, seed=painter.seed)
    samples = {"painted lesions": painted, "training lesions": training, "places before": places}
    reference = squares_of(real_lesions(data, n, seed=painter.seed), CROP_PX)
    figures: dict[str, list[DistributionDistance]] = {name: [] for name in samples}
    for extract in EXTRACTORS.values():
        real, extractor = extract(reference)
        for name, images in samples.items():
            features, _ = extract(squares_of(images, CROP_PX))
            subset = max(2, min(len(real), len(features)) // 2)
            figures[name].append(kid(real, features, extractor=extractor, subset_size=subset, seed=painter.seed))
            figures[name].append(fid(real, features, extractor=extractor))
    return figures


def table(figures: dict[str, list[DistributionDistance]]) -> str:
    """A block per extractor, a line per sample."""
    lines = [f"{'compared with real validation lesions':<40}{'n':>4}{'real':>6}   {'KID (± over halves)':<22}{'FID':>9}"]
    for kernels in zip(*(row[::2] for row in figures.values()), strict=True):
        lines.append(f"{kernels[0].extractor}, {kernels[0].dimensions} numbers:")
        for name, kernel in zip(figures, kernels, strict=True):
            (frechet,) = (distance for distance in figures[name][1::2] if distance.extractor == kernel.extractor)
            shown = f"{kernel.value:.4f} ± {kernel.spread:.4f}"
            lines.append(f"  {name:<38}{kernel.n_generated:>4}{kernel.n_real:>6}   {shown:<22}{frechet.value:>9.3f}")
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    figures = measure(data, options.n, Painter.of(options))
    return f"{data.title}, seed {options.seed}\n{table(figures)}", figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--n", type=int, default=48, help="squares of each sample; FID depends on it")
    return run_study(parser, _study, arguments, needs="labelled lesions and normal images", preferred=("breast_ultrasound",))
