"""Images with one mask: real lesions under their own masks, and free places under the outlines of lesions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.geometry.roi import crop, roi_around
from monai_diffaug.masks.shapes import borrow_shape, largest_component, place
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.prompts import NORMAL, compose_prompt, vocabulary_of
from monai_diffaug.studies.study_images import VALIDATION, StudyData, StudyImage, StudyInputError
from monai_diffaug.training.crops import crop_squares

__all__ = ["MaskedImage", "crop_of", "cut_squares", "first_lesions", "free_places", "lesions_of", "masked", "real_lesions", "squares_of"]

MIN_AREA_PX = 60
MIN_SIDE_PX = 32
SCALE_RANGE = (0.6, 1.0)  # of a borrowed outline
CONTEXT = 2.0


@dataclass(frozen=True)
class MaskedImage:
    """An image with a mask and a word for what is under it."""

    image: Tensor  # (C, H, W) uint8, C 1 or 3
    mask: Tensor  # (1, H, W) uint8: one connected part, or everything that is labelled
    finding: str  # "normal tissue" in a free place
    group: int = -1  # near-duplicates share one; -1 of a synthetic image
    index: int = -1  # in the datalist; -1 of a synthetic image
    modality: str = ""
    anatomy: str = ""

    @property
    def is_normal(self) -> bool:
        return self.finding == NORMAL

    @property
    def mask_hw(self) -> NDArray[np.bool_]:
        """The mask as an array (H, W)."""
        inside: NDArray[np.bool_] = self.mask[0].numpy() > 0
        return inside

    def prompt_for(self, finding: str) -> str:
        """The prompt of a finding in this image; the word alone where the datalist names no modality."""
        return compose_prompt(vocabulary_of(self.modality).modality, self.anatomy, finding) if self.modality else finding

    @property
    def prompt(self) -> str:
        """The prompt of what is there."""
        return self.prompt_for(self.finding)


def masked(image: StudyImage, mask: NDArray[np.bool_], finding: str) -> MaskedImage:
    """An image with the mask (H, W) of a finding."""
    uint8_mask = torch.from_numpy(mask[None].astype(np.uint8))
    return MaskedImage(image.image, uint8_mask, finding, image.group, image.index, image.modality, image.anatomy)


def tissue_of(image: StudyImage) -> NDArray[np.bool_]:
    """Places (H, W) where normal tissue can be repainted: not in the dark frame, not near a finding."""
    return normal_tissue(image.image.numpy().max(0) / 255, image.labelled)


def lesions_of(images: Iterable[StudyImage], least_px: int = MIN_AREA_PX) -> list[MaskedImage]:
    """The largest part of each finding of each image, if it has ``least_px`` pixels."""
    parts = ((image, largest_component(mask), finding) for image in images for finding, mask in image.findings)
    return [masked(image, part, finding) for image, part, finding in parts if part.sum() >= least_px]


def first_lesions(images: Iterable[StudyImage], count: int) -> list[MaskedImage]:
    """One lesion of each of the first ``count`` images that show one."""
    by_image: dict[int, MaskedImage] = {}
    for lesion in lesions_of(images):
        by_image.setdefault(lesion.index, lesion)
    return list(by_image.values())[:count]


def lesions_of_each(data: StudyData, count: int) -> list[MaskedImage]:
    """``first_lesions`` among the validation images of each data set; StudyInputError where no data set shows any."""
    return _required([one for name in data.datasets for one in first_lesions(data.only(name).images(), count)], data, VALIDATION)


def _required(lesions: list[MaskedImage], data: StudyData, section: str) -> list[MaskedImage]:
    if not lesions:
        raise StudyInputError(f'this study needs labelled lesions in the "{section}" list, and {data.file} shows none ({data.title})')
    return lesions


def real_lesions(data: StudyData, n: int | None = None, *, section: str = VALIDATION, seed: int = 0) -> list[MaskedImage]:
    """At most ``n`` lesions of 60 pixels or more, each the largest part of its finding, in random order.

    Raises:
        StudyInputError: there is none.
    """
    lesions = _required(lesions_of(data.images(section)), data, section)
    return [lesions[i] for i in np.random.RandomState(seed).permutation(len(lesions))[:n]]


def free_places(data: StudyData, n: int, *, section: str = VALIDATION, seed: int = 0, outlines_of: str | None = None) -> list[MaskedImage]:
    """``n`` outlines of lesions (of one finding, or of all), mirrored and scaled, on the tissue of normal images, which take turns.

    Raises:
        StudyInputError: the list has no normal images, no such lesions, or no room; or there are several data sets.
    """
    rng = np.random.RandomState(seed)
    images = data.require_one().images(section)
    normal = [image for image in images if image.is_normal]
    outlines = [lesion.mask_hw for lesion in lesions_of(images) if outlines_of in (None, lesion.finding)]
    if not normal or not outlines:
        kind = "labelled lesions" if outlines_of is None else f"lesions called {outlines_of!r}"
        raise StudyInputError(
            f'this study needs normal images and {kind} in the "{section}" list, and {data.file} has {len(normal)} and {len(outlines)} '
            f"({data.title})"
        )
    order = rng.permutation(len(normal))
    tissue = {int(i): tissue_of(normal[i]) for i in order[:n]}
    places: list[MaskedImage] = []
    for turn in range(100 * n + 1):
        if len(places) == n:
            return places
        chosen = int(order[turn % len(normal)])
        outline = outlines[rng.randint(len(outlines))]
        mask = place(rng, borrow_shape(rng, outline, rng.uniform(*SCALE_RANGE)), tissue[chosen])
        if mask is not None and mask.sum() >= MIN_AREA_PX:
            places.append(masked(normal[chosen], mask, NORMAL))
    raise StudyInputError(f"found {len(places)} of {n} free places in {len(normal)} normal images of {data.file}")


def crop_of(masked_image: MaskedImage, size_px: int) -> Tensor:
    """The square around the mask, twice as wide as the mask: (C, size_px, size_px) float32 in [-1, 1]."""
    square = roi_around(masked_image.mask[0], size_px, CONTEXT)
    return crop(masked_image.image.float() / 127.5 - 1, square, size_px).clamp(-1, 1)


def squares_of(images: Iterable[MaskedImage], size_px: int) -> Tensor:
    """``crop_of`` each image, in three channels: (n, 3, size_px, size_px)."""
    return torch.stack([crop_of(image, size_px).expand(3, -1, -1) for image in images])


def lesion_square(mask: NDArray[np.bool_], context: float) -> tuple[NDArray[np.float64], float, int]:
    """Centre (y, x) and side of the square around a mask, ``context`` times its longer side, and that side, in pixels."""
    ys, xs = np.nonzero(mask)
    extent = int(max(np.ptp(ys), np.ptp(xs))) + 1
    side = float(np.clip(extent * context, MIN_SIDE_PX, max(mask.shape)))
    return np.array([(ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2]), side, extent


def cut_squares(
    pictures: Sequence[Tensor],
    centres_yx: NDArray[np.float64],
    sides: Sequence[float] | NDArray[np.float64],
    size_px: int,
    angles: NDArray[np.float64] | None = None,
    flips: NDArray[np.bool_] | None = None,
) -> Tensor:
    """``crop_squares`` of pictures (C, H, W) of any sizes: (n, C, size_px, size_px)."""
    columns = torch.from_numpy(np.asarray(centres_yx)).float(), torch.tensor(np.asarray(sides)).float()
    turns = torch.zeros(len(pictures)) if angles is None else torch.from_numpy(angles).float()
    mirrored = torch.zeros(len(pictures), dtype=torch.bool) if flips is None else torch.from_numpy(flips)
    rows = zip(pictures, *columns, turns, mirrored, strict=True)
    return torch.cat([crop_squares(p[None], c[None], s[None], size_px, t[None], m[None]) for p, c, s, t, m in rows])
