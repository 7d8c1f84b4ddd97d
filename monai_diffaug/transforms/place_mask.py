"""``PlaceMask`` and ``PlaceMaskd``: draw the mask of a lesion that is to be painted into a normal image (DiffAug)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from monai.utils.type_conversion import convert_to_dst_type
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.edit.record import EMPTY_BECAUSE
from monai_diffaug.edit.request import Prompt, prompt_text
from monai_diffaug.geometry.channels import MANY_CHANNELS, shown
from monai_diffaug.geometry.grids import affine_of, check_finite, check_grid, check_image, plain, required
from monai_diffaug.geometry.slices import PLANES, from_slices, slice_plane, slice_spacing_mm, to_slices
from monai_diffaug.geometry.window import brighter_than_border
from monai_diffaug.masks.mask_bank import checked_bank, load_mask, outline_of
from monai_diffaug.masks.shapes import (
    borrow_shape,
    elastic_ellipse,
    largest_component,
    lesion_shape,
    overlap,
    place,
    place_centre,
    random_blob,
)
from monai_diffaug.prompts import outline_words
from monai_diffaug.transforms.seeded import SeededTransform

__all__ = ["PlaceMask", "PlaceMaskD", "PlaceMaskDict", "PlaceMaskd", "ShapeSource"]

ShapeSource = Callable[[np.random.RandomState, int], NDArray[np.bool_]]
"""(source of random numbers, longer side in pixels) -> (h, w) outline."""

SHAPES: Mapping[str, ShapeSource] = {"blob": random_blob, "ellipse": elastic_ellipse}
MIN_SHAPE_PX = 4
SLICE_TRIES = 5
SIZE_TRIES = 60  # positions per size
SHRINK = 0.8  # of a size that finds no place
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
        size_mm: (smallest, largest) longest diameter in mm (pixels without an affine), in place of ``size_range``. The shape is an ellipse,
            in a volume an ellipsoid in mm along all three axes (``depth_mm`` is not used), with waves for "blob". A size that finds no
            place is made smaller, down to the smallest.
        scale_range: scaling of a shape from the bank.
        depth_mm: height of the region in a volume; 0 is one slice.
        tissue_above: pixels count as tissue if they are brighter than this share of the window (0.5 to 99.5 percentiles; 0 to 255
            for uint8), so that no lesion lies on the black frame around a scan. Not used when a region is given.
        plane: anatomical plane of the slices of a 3-D image.
        prob: probability of drawing a mask; otherwise it is empty.

    Raises:
        ValueError: an option out of range, an empty bank, or empty masks in it; the message names all of them.

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
        size_mm: tuple[float, float] | None = None,
        scale_range: tuple[float, float] = (0.7, 1.3),
        depth_mm: float = 8.0,
        tissue_above: float = 0.05,
        plane: str = "axial",
        prob: float = 1.0,
    ) -> None:
        SeededTransform.__init__(self, prob)
        ranges = (("size_range", size_range, 1.0), ("scale_range", scale_range, np.inf), ("size_mm", size_mm or (1.0, 1.0), np.inf))
        for name, (low, high), most in ranges:
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
        if size_mm is not None and (bank is not None or shape not in SHAPES):
            raise ValueError(f"size_mm is for shape {' and '.join(SHAPES)}; a bank has scale_range, and a function of your own size_range")
        self.bank = None if bank is None else checked_bank(bank)
        self.shape = shape
        self.size_range, self.scale_range = (size_range[0], size_range[1]), (scale_range[0], scale_range[1])
        self.size_mm = None if size_mm is None else (float(size_mm[0]), float(size_mm[1]))
        self.depth_mm = depth_mm
        self.tissue_above = tissue_above
        self.plane = plane

    def __call__(
        self, img: NdarrayOrTensor, region: NdarrayOrTensor | None = None, prompt: Prompt | None = None, randomize: bool = True
    ) -> NdarrayOrTensor:
        """The mask (1, H, W[, D]) uint8, in the type of the image and with its meta data.

        Args:
            img: (C, H, W[, D]), C 1 to 8; a pixel is tissue if any channel is bright there.
            region: (1, ...) on the same grid, above 0 where the mask may lie, e.g. an organ; None means tissue.
            prompt: text whose words for shape ("round", "oval", "irregular") and margin ("spiculated", "lobulated") the outline follows.
            randomize: draw a new trigger and seed.

        Raises:
            GridMismatchError: the region is on another grid.
            ValueError: the image is not (1 to 8, H, W[, D]), or without a region has non-finite voxels.
        """
        if randomize:
            self.randomize()
        return self.apply(img, region, prompt=prompt, seed=self.seed, triggered=self._do_transform)

    def apply(
        self,
        img: NdarrayOrTensor,
        region: NdarrayOrTensor | None = None,
        label: NdarrayOrTensor | None = None,
        *,
        prompt: Prompt | None = None,
        seed: int,
        triggered: bool = True,
    ) -> NdarrayOrTensor:
        """The mask of a given seed; it stays clear of all non-zero pixels of the ``label`` (1, ...) of class ids."""
        check_image(img, MANY_CHANNELS)
        volume = plain(img)
        free = torch.ones_like(volume[:1], dtype=torch.bool)
        if region is not None:
            check_grid("region", region, img)
            free = free & (plain(region).to(free.device) > 0)
        if label is not None:
            check_grid("label", label, img)
            free = free & (plain(label).to(free.device) == 0)
        allowed = free if region is not None else free & self.tissue(volume)
        if prompt is not None and (self.bank is not None or self.shape not in SHAPES):
            raise ValueError(f"a prompt's words for the outline need shape {' or '.join(SHAPES)}, not a bank or a function of your own")
        plane = slice_plane(affine_of(img), self.plane, volume.ndim - 1)
        allowed_slices, free_slices = (to_slices(each, plane)[:, 0].cpu().numpy() for each in (allowed, free))
        mask = np.zeros_like(free_slices)
        if triggered:
            rng, spacing_mm = np.random.RandomState(seed), slice_spacing_mm(affine_of(img), plane)
            if self.size_mm is None and prompt is None:
                self._draw(mask, allowed_slices, free_slices, rng, spacing_mm)
            else:
                self._draw_in_mm(mask, allowed_slices, free_slices, rng, spacing_mm, "" if prompt is None else prompt_text(prompt))
        stacked = from_slices(torch.from_numpy(mask)[:, None], plane).contiguous()
        result: NdarrayOrTensor = convert_to_dst_type(stacked.to(torch.uint8), dst=img, dtype=torch.uint8)[0]
        if isinstance(result, MetaTensor) and not mask.any():
            cause = "" if allowed_slices.any() else _cause(region, label)
            result.meta[EMPTY_BECAUSE] = f"no free place was found{cause}" if triggered else "none was to be placed"
        return result

    def tissue(self, volume: Tensor) -> Tensor:
        """(1, H, W[, D]) bool: pixels of a plain image that are brighter than ``tissue_above`` of its window or of its dark frame."""
        check_finite(volume)
        level = shown(volume).amax(0, keepdim=True)
        return (level > 2 * self.tissue_above - 1) | brighter_than_border(volume, self.tissue_above)

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

    def _draw_in_mm(
        self,
        mask: NDArray[np.bool_],
        allowed: NDArray[np.bool_],
        free: NDArray[np.bool_],
        rng: np.random.RandomState,
        spacing_mm: tuple[float, float, float],
        words: str,
    ) -> None:
        """Write one lesion into the stack, in place: an ellipse or ellipsoid in mm, smaller at each failure."""
        low, high = self.size_mm or np.multiply(self.size_range, min(np.multiply(allowed.shape[1:], spacing_mm[1:])))
        shape, margin = outline_words(words)
        in_plane = len(allowed) == 1
        size = rng.uniform(low, high)
        while True:
            axes_mm = spacing_mm[1:] if in_plane else spacing_mm
            lesion = lesion_shape(rng, size, axes_mm, shape=shape, margin=margin, smooth=self.shape == "ellipse")
            lesion = lesion[None] if in_plane else lesion
            corner = place_centre(rng, lesion, allowed, SIZE_TRIES)
            if corner is not None:
                part, box = overlap(corner, lesion.shape, allowed.shape)
                for here, outline, may, clear in zip(mask[box], lesion[part], allowed[box], free[box], strict=True):
                    here[:] = _fitted(outline, may, clear)
                return
            if size <= low:
                return
            size = max(low, SHRINK * size)

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
        outline = outline_of(load_mask(chosen), f"the mask {chosen}") if isinstance(chosen, (str, Path)) else chosen
        return borrow_shape(rng, outline, rng.uniform(*self.scale_range))


class PlaceMaskd(SeededTransform, MapTransform):
    """Write a lesion-shaped mask at a random place of each image, see ``PlaceMask`` for the arguments that are not listed here.

    Args:
        keys: images, each (C, H, W[, D]); those of one sample share the mask, drawn on the first.
        mask_key: key of the mask; always written, empty when not triggered or when no place was found.
        region_key: region in which the mask may lie, e.g. an organ's label (above 0); None means tissue.
        region_values: class ids of the region, e.g. that of the liver in an organ map; None means all above 0.
        label_key: class ids of the image; the mask stays clear of all non-zero pixels (existing lesions, and -1 for unknown).
        lesion_values: class ids of the label that are lesions: the mask stays clear of them, and of negative ids, alone. Set it for a label
            of organs, which leaves no free place; None means all ids.
        prompt_key: prompt that ``TextPromptd`` wrote before; the outline follows its words "round", "oval", "irregular", "spiculated" and
            "lobulated". It is then drawn in mm as with ``size_mm``. None draws any outline.
        allow_missing_keys: skip samples that lack the image.

    Raises:
        KeyError: the sample has no region, label or prompt.

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
        region_values: int | Sequence[int] | None = None,
        label_key: str | None = None,
        lesion_values: int | Sequence[int] | None = None,
        prompt_key: str | None = None,
        bank: Sequence[NdarrayOrTensor | str | Path] | None = None,
        shape: str | ShapeSource = "blob",
        size_range: tuple[float, float] = (0.08, 0.35),
        size_mm: tuple[float, float] | None = None,
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
            bank,
            shape=shape,
            size_range=size_range,
            size_mm=size_mm,
            scale_range=scale_range,
            depth_mm=depth_mm,
            tissue_above=tissue_above,
            plane=plane,
        )
        if (region_values is not None and region_key is None) or (lesion_values is not None and label_key is None):
            raise ValueError("region_values needs region_key, and lesion_values needs label_key: the item that holds these class ids")
        if prompt_key is not None and (bank is not None or shape not in SHAPES):
            raise ValueError(f"prompt_key needs shape {' or '.join(SHAPES)}, not a bank or a function of your own")
        self.mask_key, self.region_key, self.label_key, self.prompt_key = mask_key, region_key, label_key, prompt_key
        self.region_values, self.lesion_values = _ids(region_values), _ids(lesion_values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        d = dict(data)
        for key in self.key_iterator(d):
            region, label = (None if name is None else required(d, name) for name in (self.region_key, self.label_key))
            prompt = None if self.prompt_key is None else required(d, self.prompt_key, "put TextPromptd before PlaceMaskd")
            if self.region_values and region is not None:
                region = _of_values(region, self.region_values)
            if self.lesion_values and label is not None:
                label = _of_values(label, self.lesion_values, unknown=True)
            d[self.mask_key] = self.place.apply(d[key], region, label, prompt=prompt, seed=self.seed, triggered=self._do_transform)
            break
        return d


PlaceMaskD = PlaceMaskDict = PlaceMaskd


def _ids(values: int | Sequence[int] | None) -> tuple[int, ...]:
    return () if values is None else (int(values),) if isinstance(values, int) else tuple(int(value) for value in values)


def _of_values(label: NdarrayOrTensor, values: tuple[int, ...], unknown: bool = False) -> NdarrayOrTensor:
    """1 where a label has one of the class ids, or with ``unknown`` a negative one."""
    ids = plain(label)
    chosen = torch.isin(ids, torch.tensor(values, device=ids.device))
    if unknown:
        chosen = chosen | (ids < 0)
    selected: NdarrayOrTensor = convert_to_dst_type(chosen.to(torch.uint8), label, dtype=torch.uint8)[0]
    return selected


def _cause(region: NdarrayOrTensor | None, label: NdarrayOrTensor | None) -> str:
    """Why no pixel of an image is allowed."""
    if region is not None and not bool((plain(region) > 0).any()):
        return ": the region is empty"
    if label is not None and bool((plain(label) != 0).any()):
        where = "tissue" if region is None else "region"
        return f": the label marks all of the {where}; if it holds organs, name the class ids of lesions by lesion_values="
    return ": the image is black, or the label leaves nothing" if region is None else ""


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
