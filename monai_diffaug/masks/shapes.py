"""Lesion masks for normal images: shapes of real lesions, smooth random blobs and elastic ellipses, placed on tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["borrow_shape", "elastic_ellipse", "largest_component", "place", "random_blob"]

ELASTIC_CANVAS_PX = 96  # the ellipse is drawn and deformed at this size; its longer axis is two thirds of it
ELASTIC_SPACING_PX = 16  # distance of the control points
ELASTIC_MAGNITUDE_PX = (2.0, 6.0)  # standard deviation of the control points' shifts, 3 to 9 % of the longer axis


def random_blob(rng: np.random.RandomState, side: int) -> NDArray[np.bool_]:
    """A smooth closed shape in a box of ``side`` x ``side`` pixels: an ellipse with four random radial harmonics.

    >>> blob = random_blob(np.random.RandomState(0), 40)
    >>> blob.shape, bool(blob[20, 20]), bool(blob[0, 0])
    ((40, 40), True, False)
    """
    angle = np.linspace(-np.pi, np.pi, 361)
    radius = np.ones_like(angle)
    for order in range(2, 6):
        radius += rng.uniform(0, 0.25) / order * np.cos(order * angle + rng.uniform(-np.pi, np.pi))
    radius /= radius.max()
    ratio, turn = rng.uniform(0.45, 1.0), rng.uniform(0, np.pi)
    ys, xs = np.indices((side, side)) * 2.0 / max(side - 1, 1) - 1
    u = np.cos(turn) * xs + np.sin(turn) * ys
    v = (-np.sin(turn) * xs + np.cos(turn) * ys) / ratio
    blob: NDArray[np.bool_] = np.hypot(u, v) <= np.interp(np.arctan2(v, u), angle, radius)
    return blob


def elastic_ellipse(rng: np.random.RandomState, side: int) -> NDArray[np.bool_]:
    """An elastically deformed ellipse of random ratio and direction, cropped; its longer side is ``side`` pixels.

    The deformation is MONAI's ``Rand2DElastic``: random shifts of control points, interpolated in between.

    >>> max(elastic_ellipse(np.random.RandomState(0), 30).shape)
    30
    """
    from monai.transforms.spatial.array import Rand2DElastic
    from scipy.ndimage import zoom

    ratio, turn = rng.uniform(0.45, 1.0), rng.uniform(0, np.pi)
    ys, xs = np.indices((ELASTIC_CANVAS_PX, ELASTIC_CANVAS_PX)) - (ELASTIC_CANVAS_PX - 1) / 2
    u, v = np.cos(turn) * xs + np.sin(turn) * ys, -np.sin(turn) * xs + np.cos(turn) * ys
    ellipse = np.hypot(u, v / ratio) <= ELASTIC_CANVAS_PX / 3
    deform = Rand2DElastic((ELASTIC_SPACING_PX,) * 2, ELASTIC_MAGNITUDE_PX, prob=1.0, mode="bilinear", padding_mode="zeros")
    deform.set_random_state(state=rng)
    deformed = largest_component(np.asarray(deform(ellipse[None].astype(np.float32)))[0] > 0.5)
    rows, columns = np.nonzero(deformed)
    cut = deformed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    shape: NDArray[np.bool_] = zoom(cut.astype(np.float32), side / max(cut.shape), order=1, mode="nearest", grid_mode=True) > 0.5
    return shape


def borrow_shape(rng: np.random.RandomState, mask: NDArray[np.bool_], scale: float) -> NDArray[np.bool_]:
    """The shape of a real lesion, cropped, scaled and randomly mirrored.

    >>> mask = np.zeros((50, 50), bool)
    >>> mask[10:30, 10:20] = True
    >>> borrow_shape(np.random.RandomState(0), mask, 0.5).shape
    (10, 5)
    """
    from scipy.ndimage import zoom

    ys, xs = np.nonzero(mask)
    cut = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    cut = cut[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    shape: NDArray[np.bool_] = zoom(cut.astype(np.float32), scale, order=1) > 0.5
    return shape if shape.any() else cut


def place(rng: np.random.RandomState, shape: NDArray[np.bool_], tissue: NDArray[np.bool_], tries: int = 30) -> NDArray[np.bool_] | None:
    """Mask (H, W) with the shape at a random position where at least 95 % of it is on tissue; None if there is none.

    Args:
        rng: source of the position.
        shape: (h, w) lesion shape.
        tissue: (H, W), True where a lesion may be.
        tries: maximum number of random positions.

    >>> int(place(np.random.RandomState(0), np.ones((3, 4), bool), np.ones((20, 20), bool)).sum())
    12
    """
    height, width = shape.shape
    if height > tissue.shape[0] or width > tissue.shape[1]:
        return None
    for _ in range(tries):
        top, left = rng.randint(max(tissue.shape[0] - height, 1)), rng.randint(max(tissue.shape[1] - width, 1))
        if tissue[top : top + height, left : left + width][shape].mean() >= 0.95:
            mask = np.zeros_like(tissue)
            mask[top : top + height, left : left + width] = shape
            return mask
    return None


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected component of a non-empty mask.

    >>> largest_component(np.array([[1, 0, 1, 1]], bool)).tolist()
    [[False, False, True, True]]
    """
    from scipy.ndimage import label

    parts, _ = label(mask)
    largest: NDArray[np.bool_] = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return largest
