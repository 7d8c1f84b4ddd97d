"""Choice of the lesion that an arm of a study paints: the image's own, or one borrowed from another labelled image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable
from numpy.typing import NDArray

from monai_diffaug.masks.shapes import borrow_shape, largest_component, place
from monai_diffaug.masks.soft_edge import composite, soft_mask
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.masked_images import MaskedImage
from monai_diffaug.training.captions import caption, measure

__all__ = ["BorrowedLesiond", "OwnLesiond", "OwnOrBorrowedLesiond"]

MIN_LESION_PX = 60
SCALE_RANGE = (0.6, 1.2)
PASTE_EDGE_PX = 1.5


class BorrowedLesiond(Randomizable, MapTransform):
    """Put the outline of another training lesion, scaled and mirrored, on free tissue.

    Writes "mask" (1, H, W) uint8, "prompt" and "finding"; with ``paste`` the lesion's own pixels into "image" and "label" too, which is
    the copy-paste rival. A lesion goes next to one of the same finding or into a normal image. Without a free place the mask is empty.
    """

    def __init__(self, cases: Sequence[MaskedImage], *, paste: bool = False) -> None:
        MapTransform.__init__(self, ("image", "label"))
        self.donors = [case for case in cases if case.mask.sum() >= MIN_LESION_PX]
        if not self.donors:
            raise ValueError(f"no training image has a lesion of {MIN_LESION_PX} pixels to borrow")
        self.paste = paste

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        d = dict(data)
        image, label = np.asarray(d["image"]), np.asarray(d["label"])[0] > 0
        donors = [donor for donor in self.donors if d["finding"] in (NORMAL, donor.finding)] or self.donors
        donor = donors[self.R.randint(len(donors))]
        outline, scale = largest_component(donor.mask_hw), self.R.uniform(*SCALE_RANGE)
        tissue = normal_tissue(image.max(0) / 255, label)
        pixels, shape = _cut_out(self.R, donor, outline, scale) if self.paste else (None, borrow_shape(self.R, outline, scale))
        mask = place(self.R, shape, tissue)
        d["mask"] = torch.from_numpy((np.zeros_like(label) if mask is None else mask)[None].astype(np.uint8))
        d["prompt"], d["finding"] = _prompt(self.R, donor, shape), donor.finding
        if mask is not None and pixels is not None:
            d["image"] = torch.from_numpy(_pasted(image, pixels, shape, mask))
            d["label"] = torch.from_numpy((label | mask)[None].astype(np.uint8))
        return d


class OwnLesiond(Randomizable, MapTransform):
    """Write "mask" and "prompt" of the image's own lesion; its mask is empty on normal images."""

    def __init__(self) -> None:
        MapTransform.__init__(self, ("image", "label"))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        d = dict(data)
        image, label = np.asarray(d["image"]), np.asarray(d["label"])[0] > 0
        lesion = largest_component(label) if label.any() else label
        d["mask"] = torch.from_numpy(lesion[None].astype(np.uint8))
        words = (d["modality"], d["anatomy"], d["finding"])
        d["prompt"] = caption(self.R, *words, measure(image.mean(0), lesion, float(lesion.mean())) if lesion.any() else None)
        return d


class OwnOrBorrowedLesiond(Randomizable, MapTransform):
    """``OwnLesiond`` with the probability ``own_share``, else, and always on normal images, ``BorrowedLesiond``."""

    def __init__(self, cases: Sequence[MaskedImage], *, own_share: float = 0.5) -> None:
        MapTransform.__init__(self, ("image", "label"))
        self.own, self.borrowed = OwnLesiond(), BorrowedLesiond(cases)
        self.own_share = own_share

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> OwnOrBorrowedLesiond:
        """The two transforms draw from the same stream as the coin."""
        super().set_random_state(seed, state)
        for transform in (self.own, self.borrowed):
            transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        uses_own = self.R.rand() < self.own_share and data["finding"] != NORMAL
        return (self.own if uses_own else self.borrowed)(data)


def _cut_out(
    rng: np.random.RandomState, donor: MaskedImage, outline: NDArray[np.bool_], scale: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The lesion's pixels (C, h, w) and outline (h, w), scaled and mirrored alike."""
    from scipy.ndimage import zoom

    ys, xs = np.nonzero(outline)
    rows, columns = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    turn_y, turn_x = rng.choice([-1, 1]), rng.choice([-1, 1])
    cut = donor.image.numpy()[:, rows, columns][:, ::turn_y, ::turn_x].astype(np.float32)
    shape = zoom(outline[rows, columns][::turn_y, ::turn_x].astype(np.float32), scale, order=1) > 0.5
    return np.stack([zoom(channel, scale, order=1) for channel in cut]), shape


def _pasted(image: NDArray[np.uint8], pixels: NDArray[np.float32], shape: NDArray[np.bool_], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The lesion composited with a soft edge within its outline."""
    ys, xs = np.nonzero(mask)
    inner_ys, inner_xs = np.nonzero(shape)
    top, left = ys.min() - inner_ys.min(), xs.min() - inner_xs.min()
    canvas = image.astype(np.float32)
    canvas[:, top : top + shape.shape[0], left : left + shape.shape[1]] = pixels
    weights = soft_mask(torch.from_numpy(mask), PASTE_EDGE_PX, "inner")
    result: NDArray[np.uint8] = composite(torch.from_numpy(image), torch.from_numpy(canvas), weights[None]).numpy()
    return result


def _prompt(rng: np.random.RandomState, donor: MaskedImage, shape: NDArray[np.bool_]) -> str:
    attributes = measure(donor.image.numpy().mean(0), largest_component(donor.mask_hw), float(shape.sum()) / donor.mask.numel())
    return caption(rng, donor.modality, donor.anatomy, donor.finding, attributes)
