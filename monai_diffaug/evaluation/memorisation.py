"""Memorisation: is a generated lesion nearer to a training lesion than real lesions are to each other?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from monai_diffaug.roi import crop, roi_around

__all__ = ["Memorisation", "lesion_views", "memorisation"]

SIDE_PX = 32
CONTEXT = 1.5


@dataclass(frozen=True)
class Memorisation:
    """Nearest-neighbour distances of generated and of real lesions, both to the training lesions.

    Attributes:
        generated: (n,) distance of each generated lesion to its nearest training lesion.
        nearest: (n,) index of that lesion.
        real: (k,) distance of real lesions to their nearest training lesion of another group.
        threshold: the given quantile of ``real``.
        share_below: share of the generated lesions below it; a generator that copies nothing stays near ``quantile``.
        median_ratio: median of ``generated`` over median of ``real``; well below 1 means copies.
        quantile: where the threshold lies.
    """

    generated: NDArray[np.float64]
    nearest: NDArray[np.int64]
    real: NDArray[np.float64]
    threshold: float
    share_below: float
    median_ratio: float
    quantile: float

    @property
    def suspects(self) -> NDArray[np.int64]:
        """Indices of the generated lesions below the threshold, the nearest first."""
        order = np.argsort(self.generated)
        below: NDArray[np.int64] = order[self.generated[order] < self.threshold]
        return below

    def __str__(self) -> str:
        return (
            f"{100 * self.share_below:.0f} % of {len(self.generated)} generated lesions are nearer to a training lesion than "
            f"{100 * self.quantile:.0f} % of {len(self.real)} real ones are; median distance ratio {self.median_ratio:.2f}"
        )


def memorisation(
    generated: ArrayLike,
    training: ArrayLike,
    *,
    held_out: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    quantile: float = 0.05,
) -> Memorisation:
    """Compare nearest-neighbour distances (Euclidean) in a feature space.

    Args:
        generated: (n, d), or (n, v, d) with v views of each (mirrored, ...), the nearest of which counts.
        training: (m, d) what the generator was trained on.
        held_out: (k, d) or (k, v, d) real lesions that it was not trained on: the yardstick. None compares each training lesion
            with the others, leaving out its group.
        groups: (m,) near-duplicates share a group; only used without ``held_out``. None: each is its own group.
        quantile: of the real distances, in (0, 1).

    Raises:
        ValueError: shapes do not fit, or nothing is left to compare with.
    """
    table = np.asarray(training, np.float64)
    if table.ndim != 2 or len(table) < 2 or not 0 < quantile < 1:
        raise ValueError(f"training must be (m, d) with m >= 2 and quantile in (0, 1), got {table.shape} and {quantile}")
    ours = _distances(np.asarray(generated, np.float64), table, "generated")
    if held_out is not None:
        real = _distances(np.asarray(held_out, np.float64), table, "held_out").min(1)
    else:
        names = np.arange(len(table)) if groups is None else np.asarray(groups)
        if names.shape != (len(table),):
            raise ValueError(f"groups must be ({len(table)},), one for each training lesion, got {names.shape}")
        if len(np.unique(names)) < 2:
            raise ValueError("all training lesions are of one group: give held_out to compare with")
        among = _distances(table, table, "training")
        among[names[:, None] == names[None]] = np.inf
        real = among.min(1)
    nearest = ours.argmin(1)
    mine = ours.min(1)
    threshold = float(np.quantile(real, quantile))
    ratio = float(np.median(mine) / max(float(np.median(real)), 1e-12))
    return Memorisation(mine, nearest, real, threshold, float((mine < threshold).mean()), ratio, quantile)


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
    """A lesion as pixels: its square at 32 x 32, grey, zero mean and unit variance, as it is and mirrored left to right.

    Args:
        image: (C, h, w), any unit: brightness and contrast do not count.
        mask: (1, h, w) or (h, w), the lesion, not empty.

    Returns:
        (2, 1024); row 0 is the one for ``training``.

    Raises:
        ValueError: the mask is empty.
    """
    picture = torch.as_tensor(np.asarray(image, np.float64)).float().mean(0, keepdim=True)
    region = torch.as_tensor(np.asarray(mask)).reshape(picture.shape[-2:])
    cut = crop(picture, roi_around(region, SIDE_PX, CONTEXT, min_side=8), SIDE_PX)[0].double().numpy()
    centred = (cut - cut.mean()) / max(float(cut.std()), 1e-6)
    return np.stack([centred.ravel(), centred[:, ::-1].ravel()])
