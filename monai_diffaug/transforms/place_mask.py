"""``PlaceMask`` and ``PlaceMaskd``: draw the mask of a lesion that is to be painted into a normal image (DiffAug)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms.transform import MapTransform
from monai.utils.type_conversion import convert_to_dst_type
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.edit.record import EMPTY_BECAUSE
from monai_diffaug.geometry.grids import affine_of, check_finite, check_grid, check_image, plain, required
from monai_diffaug.geometry.slices import PLANES, SlicePlane, from_slices, slice_plane, to_slices
from monai_diffaug.geometry.window import window_of
from monai_diffaug.masks.shapes import borrow_shape, elastic_ellipse, largest_component, place, random_blob
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = ["PlaceMask", "PlaceMaskD", "PlaceMaskDict", "PlaceMaskd", "ShapeSource"]

ShapeSource = Callable[[np.random.RandomState, int], NDArray[np.bool_]]
"""(source of random numbers, longer side in pixels) -> (h, w) outline."""

SHAPES: Mapping[str, ShapeSource] = {"blob": random_blob, "ellipse": elastic_ellipse}
MIN_SHAPE_PX = 4
SLICE_TRIES = 5
SQUARE = 0.99  # least ratio of the sides of a pixel that counts as square


class PlaceMask(SeededTransform):
    """A lesion-shaped mask at a random place of an image: a shape from a bank of real masks, or a random one.

    In 3-D the shape is drawn on one slice and shrinks towards its ends like an ellipsoid. If no place is found the mask is
    empty; ``DiffusionLocalInpaint`` then leaves the image as it is, with the reason "empty mask" in its record (for a ``MetaTensor``
    "empty mask: no free place was found"). On each slice the mask is one piece, and dark pixels that it encloses belong to it.

    Args:
        bank: real masks, (H, W) or (1, H, W) arrays or files that MONAI's ``LoadImage`` reads; None draws random shapes.
            Shapes of the bank are mirrored, scaled and shifted; one pixel of a shape is one pixel of the slice, so masks should have the
            size of the images. Arrays are pickled with the transform, files are not. Pictures are read upright, rows first; pixels of a
            colour picture count if they are brighter than half its maximum, class ids if they are above 0.
        shape: without a bank, "blob" (an ellipse with four random harmonics), "ellipse" (an ellipse after an elastic
            deformation), or a function (random state, longer side in pixels) -> (h, w) outline.
        size_range: longer side of a random shape, as a share of the slice's shorter side, both in mm (oblong pixels do not stretch it).
        scale_range: scaling of a shape from the bank.
        depth_mm: height of the region in a volume; 0 is one slice.
        tissue_above: pixels count as tissue if they are brighter than this share of the window (0.5 to 99.5 percentiles; 0 to 255
            for uint8), so that no lesion lies on the black frame around a scan. Not used when a region is given.
        plane: anatomical plane of the slices of a 3-D image.
        prob: probability of drawing a mask; otherwise it is empty.

    Raises:
        ValueError: an option out of range, an empty bank or an empty mask in it.

    >>> image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    >>> mask = PlaceMask(size_range=(0.2, 0.3)).set_random_state(seed=0)(image)
    >>> mask.shape, mask.dtype, 0.2 * 64 - 2 < int(mask.any(-1).sum()) < 0.3 * 64 + 2
    (torch.Size([1, 64, 64]), torch.uint8, True)
    """

    def __init__(
        self,
        bank: Sequence[NdarrayOrTensor | str | Path] | None = None,
        *,
        shape: str | ShapeSource = "blob",
        size_range: tuple[float, float] = (0.08, 0.35),
        scale_range: tuple[float, float] = (0.7, 1.3),
        depth_mm: float = 8.0,
        tissue_above: float = 0.05,
        plane: str = "axial",
        prob: float = 1.0,
    ) -> None:
        SeededTransform.__init__(self, prob)
        for name, (low, high), most in (("size_range", size_range, 1.0), ("scale_range", scale_range, np.inf)):
            if not 0 < low <= high <= most:
                raise ValueError(f"{name} must be (smallest, largest) with 0 < smallest <= largest <= {most}, got {(low, high)}")
        if depth_mm < 0:
            raise ValueError(f"depth_mm must be >= 0, got {depth_mm}")
        if not 0 <= tissue_above < 1:
            raise ValueError(f"tissue_above must be in [0, 1), got {tissue_above}")
        if plane not in PLANES:
            raise ValueError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
        if isinstance(bank, (str, Path)):
            raise ValueError(
                f"bank must be a list of masks or of files, got the path {str(bank)!r}; e.g. sorted(Path({str(bank)!r}).glob('*.png'))"
            )
        if bank is not None and len(bank) == 0:
            raise ValueError("the bank of masks is empty; give masks, or bank=None for random shapes")
        if shape not in SHAPES if isinstance(shape, str) else not callable(shape):
            raise ValueError(f"shape must be one of {', '.join(SHAPES)} or a function (random state, side) -> (h, w), got {shape!r}")
        self.bank = None if bank is None else [item if isinstance(item, (str, Path)) else _outline(item) for item in bank]
        self.shape = shape
        self.size_range, self.scale_range = (size_range[0], size_range[1]), (scale_range[0], scale_range[1])
        self.depth_mm = depth_mm
        self.tissue_above = tissue_above
        self.plane = plane

    def __call__(self, img: NdarrayOrTensor, region: NdarrayOrTensor | None = None, randomize: bool = True) -> NdarrayOrTensor:
        """The mask (1, H, W[, D]) uint8, in the type of the image and with its meta data.

        Args:
            img: (C, H, W[, D]), C 1 or 3.
            region: (1, ...) on the same grid, above 0 where the mask may lie, e.g. an organ; None means tissue.
            randomize: draw a new trigger and seed.

        Raises:
            GridMismatchError: the region is on another grid.
            ValueError: the image is not (1 or 3, H, W[, D]), or without a region has non-finite voxels.
        """
        if randomize:
            self.randomize()
        return self.apply(img, region, seed=self.seed, triggered=self._do_transform)

    def apply(
        self,
        img: NdarrayOrTensor,
        region: NdarrayOrTensor | None = None,
        label: NdarrayOrTensor | None = None,
        *,
        seed: int,
        triggered: bool = True,
    ) -> NdarrayOrTensor:
        """The mask of a given seed; it stays clear of all non-zero pixels of the ``label`` (1, ...) of class ids."""
        check_image(img)
        volume = plain(img)
        free = torch.ones_like(volume[:1], dtype=torch.bool)
        if region is not None:
            check_grid("region", region, img)
            free = free & (plain(region).to(free.device) > 0)
        if label is not None:
            check_grid("label", label, img)
            free = free & (plain(label).to(free.device) == 0)
        allowed = free if region is not None else free & self.tissue(volume)
        plane = slice_plane(affine_of(img), self.plane, volume.ndim - 1)
        allowed_slices, free_slices = (to_slices(each, plane)[:, 0].cpu().numpy() for each in (allowed, free))
        mask = np.zeros_like(free_slices)
        if triggered:
            self._draw(mask, allowed_slices, free_slices, np.random.RandomState(seed), _spacing_mm(img, plane))
        stacked = from_slices(torch.from_numpy(mask)[:, None], plane).contiguous()
        result: NdarrayOrTensor = convert_to_dst_type(stacked.to(torch.uint8), dst=img, dtype=torch.uint8)[0]
        if isinstance(result, MetaTensor) and not mask.any():
            result.meta[EMPTY_BECAUSE] = "no free place was found" if triggered else "none was to be placed"
        return result

    def tissue(self, volume: Tensor) -> Tensor:
        """(1, H, W[, D]) bool: pixels of a plain image that are brighter than ``tissue_above`` of its window."""
        check_finite(volume)
        level = window_of(volume).to_model(volume).amax(0, keepdim=True)
        return level > 2 * self.tissue_above - 1

    def _draw(
        self,
        mask: NDArray[np.bool_],
        allowed: NDArray[np.bool_],
        free: NDArray[np.bool_],
        rng: np.random.RandomState,
        spacing_mm: tuple[float, float, float],
    ) -> None:
        """Write one lesion into the stack, in place: its allowed pixels, and the free pixels that they enclose."""
        shares = allowed.mean((1, 2))
        if not shares.any():
            return
        shape = self._shape(rng, allowed.shape[1:], spacing_mm[1:])
        for _ in range(SLICE_TRIES):
            middle = int(rng.choice(len(allowed), p=shares / shares.sum()))
            placed = place(rng, shape, allowed[middle])
            if placed is None:
                continue
            rows, columns = np.nonzero(placed)
            box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
            half = self.depth_mm / 2 / spacing_mm[0]
            for index in range(max(0, int(np.ceil(middle - half))), min(len(mask), int(np.floor(middle + half)) + 1)):
                share = 1.0 if half == 0 else np.sqrt(max(1 - ((index - middle) / (half + 0.5)) ** 2, 0))
                mask[index][box] = _fitted(_shrunk(placed[box], float(share)), allowed[index][box], free[index][box])
            return

    def _shape(self, rng: np.random.RandomState, size_hw: tuple[int, ...], pixel_mm: tuple[float, ...]) -> NDArray[np.bool_]:
        if self.bank is None:
            draw = SHAPES[self.shape] if isinstance(self.shape, str) else self.shape
            shorter = min(length * mm for length, mm in zip(size_hw, pixel_mm, strict=True)) / min(pixel_mm)
            outline = np.asarray(draw(rng, max(MIN_SHAPE_PX, round(rng.uniform(*self.size_range) * shorter)))) != 0
            if outline.ndim != 2 or not outline.any():
                raise ValueError(
                    f"shape= must draw an outline (h, w) that is not empty, got {outline.shape}, {int(outline.sum())} pixels set"
                )
            return _on_pixels(outline, pixel_mm)
        chosen = self.bank[rng.randint(len(self.bank))]
        outline = _outline(_load(chosen), f"the mask {chosen}") if isinstance(chosen, (str, Path)) else chosen
        return borrow_shape(rng, outline, rng.uniform(*self.scale_range))


class PlaceMaskd(SeededTransform, MapTransform):
    """Write a lesion-shaped mask at a random place of each image, see ``PlaceMask`` for the arguments that are not listed here.

    Args:
        keys: images, each (C, H, W[, D]); those of one sample share the mask, drawn on the first.
        mask_key: key of the mask; always written, empty when not triggered or when no place was found.
        region_key: region in which the mask may lie, e.g. an organ's label (above 0); None means tissue.
        label_key: class ids of the image; the mask stays clear of all non-zero pixels (existing lesions, and -1 for unknown).
        allow_missing_keys: skip samples that lack the image.

    Raises:
        KeyError: the sample has no region or no label.

    >>> sample = {"image": torch.rand(1, 64, 64) + 1, "label": torch.zeros(1, 64, 64)}
    >>> sample["label"][:, :32] = 1
    >>> mask = PlaceMaskd("image", label_key="label").set_random_state(seed=0)(sample)["mask"]
    >>> bool(mask.any()), bool((mask * sample["label"]).any())
    (True, False)
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mask_key: str = "mask",
        region_key: str | None = None,
        label_key: str | None = None,
        bank: Sequence[NdarrayOrTensor | str | Path] | None = None,
        shape: str | ShapeSource = "blob",
        size_range: tuple[float, float] = (0.08, 0.35),
        scale_range: tuple[float, float] = (0.7, 1.3),
        depth_mm: float = 8.0,
        tissue_above: float = 0.05,
        plane: str = "axial",
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        SeededTransform.__init__(self, prob)
        self.place = PlaceMask(
            bank, shape=shape, size_range=size_range, scale_range=scale_range, depth_mm=depth_mm, tissue_above=tissue_above, plane=plane
        )
        self.mask_key, self.region_key, self.label_key = mask_key, region_key, label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        d = dict(data)
        for key in self.key_iterator(d):
            region, label = (None if name is None else required(d, name) for name in (self.region_key, self.label_key))
            d[self.mask_key] = self.place.apply(d[key], region, label, seed=self.seed, triggered=self._do_transform)
            break
        return d


PlaceMaskD = PlaceMaskDict = PlaceMaskd


def _load(path: str | Path) -> NdarrayOrTensor:
    """A mask file as MONAI reads it; pictures upright, as for the training of the embedded models, colour pictures thresholded."""
    from monai.data.image_reader import PILReader
    from monai.transforms.io.array import LoadImage

    load = LoadImage(image_only=True)
    load.register(PILReader(reverse_indexing=False))
    values = plain(load(str(path)))
    if values.ndim == 3 and values.shape[-1] in (3, 4):
        grey = values[..., :3].amax(-1)
        return grey > grey.max() / 2
    return values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values


def _outline(mask: NdarrayOrTensor, name: str = "a mask of the bank") -> NDArray[np.bool_]:
    """The largest component of a mask, cropped to its bounding box: (h, w) bool."""
    values = plain(mask).cpu().numpy()
    flat = values.reshape(values.shape[-2:]) if values.ndim == 3 and values.shape[0] == 1 else values
    if flat.ndim != 2:
        raise ValueError(f"{name} must be (H, W) or (1, H, W), got {tuple(values.shape)}")
    if not (flat > 0).any():
        raise ValueError(f"{name} is empty; leave it out")
    part = largest_component(flat > 0)
    rows, columns = np.nonzero(part)
    return part[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].copy()


def _spacing_mm(img: NdarrayOrTensor, plane: SlicePlane | None) -> tuple[float, float, float]:
    """Distances in mm of slices, rows and columns; 1 without an affine, and for the slices of a 2-D image."""
    affine = affine_of(img)
    if affine is None:
        return 1.0, 1.0, 1.0
    spacing: list[float] = affine_to_spacing(affine).tolist()
    slices, rows, columns = (1.0, *spacing[:2]) if plane is None else (spacing[axis] for axis in plane.axes)
    return slices, rows, columns


def _on_pixels(shape: NDArray[np.bool_], pixel_mm: tuple[float, ...]) -> NDArray[np.bool_]:
    """A shape drawn on square pixels of the smaller side, resampled to pixels of these sizes (rows, columns); unchanged if square."""
    from scipy.ndimage import zoom

    factors = [max(min(pixel_mm) / mm, 1 / length) for mm, length in zip(pixel_mm, shape.shape, strict=True)]
    if min(factors) > SQUARE:
        return shape
    resampled = zoom(shape.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
    shape_on_pixels: NDArray[np.bool_] = resampled > 0.5 * resampled.max()
    return shape_on_pixels


def _fitted(outline: NDArray[np.bool_], allowed: NDArray[np.bool_], free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest allowed piece of an outline, with the free pixels that it encloses."""
    from scipy.ndimage import binary_fill_holes

    whole: NDArray[np.bool_] = binary_fill_holes(outline & allowed) & free
    return largest_component(whole) if whole.any() else whole


def _shrunk(mask: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """A mask shrunk to ``share`` of its diameter: the pixels that are far enough from its border."""
    from scipy.ndimage import distance_transform_edt

    if share >= 1:
        return mask
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    inner: NDArray[np.bool_] = depth > (1 - share) * depth.max()
    return inner
