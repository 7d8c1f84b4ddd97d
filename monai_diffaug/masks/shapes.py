"""Lesion masks for normal images: shapes of real lesions, smooth random blobs and elastic ellipses, placed on tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["borrow_shape", "elastic_ellipse", "largest_component", "lesion_shape", "overlap", "place", "place_centre", "random_blob"]

ELASTIC_CANVAS_PX = 96  # the ellipse is drawn and deformed at this size; its longer axis is two thirds of it
ELASTIC_SPACING_PX = 16  # distance of the control points
ELASTIC_MAGNITUDE_PX = (2.0, 6.0)  # standard deviation of the control points' shifts, 3 to 9 % of the longer axis

AXIS_RATIOS = {"round": (0.92, 1.0), "oval": (0.5, 0.68), "irregular": (0.75, 1.0), "": (0.5, 1.0)}  # further axes / longest axis
WAVES = {"round": 0.0, "oval": 0.0, "irregular": 1.5, "": 0.25}  # largest amplitude of a radial wave, times its order
ORDERS = range(2, 6)
SPIKES = {2: 16, 3: 60}  # by the number of axes
SPIKE_LENGTH, SPIKE_WIDTH = (0.15, 0.6), 0.012  # in radii; 1 - cos of the angle at which a spike falls to 1/e
LOBES = {2: 8, 3: 22}
LOBE_LENGTH, LOBE_WIDTH = (0.15, 0.35), 0.035
DIRECTIONS, FERET_DIRECTIONS = 2048, 64  # sampled for points of the surface, and to find the longest diameter
LEAST_RADIUS = 0.5  # of the half axis, so that no lesion is pinched off
ON_TISSUE = 0.95  # least share of a shape that lies where a lesion may be


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


def lesion_shape(
    rng: np.random.RandomState, size_mm: float, spacing_mm: Sequence[float], *, shape: str = "", margin: str = "", smooth: bool = False
) -> NDArray[np.bool_]:
    """An ellipse or ellipsoid in mm with a wavy surface, cropped to its bounding box.

    Its longest diameter is ``size_mm``. In three dimensions the first axis is that of the slices: the shape is turned
    within the slices only, so that they show its words.

    Args:
        rng: source of ratios, direction and waves.
        size_mm: longest diameter.
        spacing_mm: of the voxels along each of the 2 or 3 axes.
        shape: "round", "oval", "irregular", or "" for any.
        margin: "spiculated", "lobulated", or "".
        smooth: no waves, unless the words call for them.

    >>> [lesion_shape(np.random.RandomState(0), 20, (5, 1, 1), shape="round").shape[axis] for axis in (0, 1)]
    [3, 19]
    """
    count = len(spacing_mm)
    ratios = rng.uniform(*AXIS_RATIOS[shape], size=count - 1)
    axes = np.array([*ratios[:-1], 1.0, ratios[-1]])  # the longest lies within the slice
    turn = rng.uniform(0, np.pi)
    directions = _unit(rng.standard_normal((DIRECTIONS, count)))
    orders = np.array(ORDERS)
    heights = rng.uniform(0.7 if shape == "irregular" else 0, 1, len(orders)) * WAVES["oval" if smooth and not shape else shape] / orders
    waves = _unit(rng.standard_normal((len(orders), count))) * orders[:, None]
    phases = rng.uniform(-np.pi, np.pi, len(orders))
    bumps, length, width = {"spiculated": (SPIKES, SPIKE_LENGTH, SPIKE_WIDTH), "lobulated": (LOBES, LOBE_LENGTH, LOBE_WIDTH)}.get(
        margin, ({2: 0, 3: 0}, (0.0, 0.0), 1.0)
    )
    tops, lengths = _unit(rng.standard_normal((bumps[count], count))), rng.uniform(*length, size=bumps[count])

    def surface(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distance of each point (..., axes) in half axes of the ellipsoid, and the distance of the surface in that direction."""
        rows, columns = points[..., -2], points[..., -1]
        turned = np.stack([np.cos(turn) * rows + np.sin(turn) * columns, np.cos(turn) * columns - np.sin(turn) * rows], -1)
        scaled = np.concatenate([points[..., :-2], turned], -1) / axes
        distance = np.linalg.norm(scaled, axis=-1)
        unit = scaled / np.maximum(distance, 1e-9)[..., None]
        radius = 1 + np.sum(heights * np.cos(unit @ waves.T + phases), -1)
        radius += np.sum(lengths * np.exp((unit @ tops.T - 1) / width), -1)
        return distance, np.maximum(radius, LEAST_RADIUS)

    distance, radius = surface(directions)
    outline = directions * (radius / distance)[:, None]
    along = outline @ directions[:FERET_DIRECTIONS].T
    scale = size_mm / float((along.max(0) - along.min(0)).max())
    half = scale * np.abs(outline).max()
    grid = np.meshgrid(*(np.arange(-np.ceil(half / mm) - 1, np.ceil(half / mm) + 2) * mm for mm in spacing_mm), indexing="ij")
    distance, radius = surface(np.stack(grid, -1))
    mask = distance <= radius * scale
    mask[tuple(n // 2 for n in mask.shape)] = True
    mask = largest_component(mask)
    for axis in range(count):
        hits = np.flatnonzero(mask.any(tuple(other for other in range(count) if other != axis)))
        mask = mask.take(range(hits[0], hits[-1] + 1), axis)
    return mask


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
    unit: NDArray[np.float64] = vectors / lengths
    return unit


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
        if tissue[top : top + height, left : left + width][shape].mean() >= ON_TISSUE:
            mask = np.zeros_like(tissue)
            mask[top : top + height, left : left + width] = shape
            return mask
    return None


def place_centre(rng: np.random.RandomState, shape: NDArray[np.bool_], allowed: NDArray[np.bool_], tries: int) -> NDArray[np.int64] | None:
    """First voxel of a box of the shape's size in which at least 95 % of the shape lie on allowed voxels; None if no try succeeds.

    Each try centres the shape on an allowed voxel. The box may begin or end outside the grid, whose outside is not allowed.

    Args:
        rng: source of the positions.
        shape: (S, h, w) lesion.
        allowed: (S, H, W), True where it may lie.
        tries: maximum number of positions.

    >>> place_centre(np.random.RandomState(0), np.ones((1, 3, 3), bool), np.ones((1, 3, 3), bool), tries=40)
    array([0, 0, 0])
    """
    shares = allowed.mean((1, 2))
    if not shares.any():
        return None
    for _ in range(tries):
        middle = int(rng.choice(len(allowed), p=shares / shares.sum()))
        pixels = np.flatnonzero(allowed[middle])
        row, column = divmod(int(pixels[rng.randint(len(pixels))]), allowed.shape[2])
        corner = np.array([middle, row, column]) - np.array(shape.shape) // 2
        part, box = overlap(corner, shape.shape, allowed.shape)
        if (shape[part] & allowed[box]).sum() >= ON_TISSUE * shape.sum():
            return corner
    return None


def overlap(corner: NDArray[np.int64], size: Sequence[int], grid: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a box that lies on a grid, in voxels of the box and of the grid."""
    ends = [(max(0, int(-c)), int(min(n, g - c))) for c, n, g in zip(corner, size, grid, strict=True)]
    part = tuple(slice(begin, max(begin, end)) for begin, end in ends)
    return part, tuple(slice(each.start + int(c), each.stop + int(c)) for each, c in zip(part, corner, strict=True))


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected component of a non-empty mask.

    >>> largest_component(np.array([[1, 0, 1, 1]], bool)).tolist()
    [[False, False, True, True]]
    """
    from scipy.ndimage import label

    parts, _ = label(mask)
    largest: NDArray[np.bool_] = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return largest
