"""Draw training crops: lesions under their masks and normal tissue under free shapes, all data sets equally often."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.masks.shapes import borrow_shape, place, random_blob
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.captions import caption, measure
from monai_diffaug.training.counterfeits import cover, disguise, fill
from monai_diffaug.training.crops import blurred, cut_square, grown, square_around
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.run_settings import TrainingInputError

__all__ = ["Crop", "CropBatch", "CropSampler"]

NORMAL_SHARE = 0.3
BORROWED_SHARE = 0.6  # of the free shapes are outlines of real lesions, the rest smooth blobs
BLOB_SHARE = (0.04, 0.42)  # diameter of a blob, as a share of the slice's longer side
WHOLE_SIDE_SHARE = (0.43, 1.0)  # side of a crop that is hidden whole, likewise
ANYWHERE_SIDE_SHARE = (0.22, 0.9)  # side of a crop that is drawn anywhere, likewise
MAX_DILATION_PX = 3
NORMAL_TRIES = 20
DRAW_TRIES = 100


class Crop(NamedTuple):
    """One training example."""

    image: Tensor  # (3, S, S) in [-1, 1]
    mask: Tensor  # (1, S, S) in {0, 1}: the lesion, or where a lesion could be
    caption: str  # words for the tissue under the mask
    has_lesion: bool  # a lesion lies under the mask
    is_whole: bool  # everything is to be hidden
    origin: LabelledSlice


class CropBatch(NamedTuple):
    """N crops."""

    images: Tensor  # (N, 3, S, S) in [-1, 1]
    masks: Tensor  # (N, 1, S, S) in {0, 1}, each lesion or free shape as it is
    hidden: Tensor  # (N, 1, S, S) in {0, 1}: the masks grown by 0 to 3 pixels, or everything
    captions: list[str]
    crops: list[Crop]

    @property
    def lesions(self) -> Tensor:
        """(N, 1, S, S): the masks of the lesions, empty where no lesion lies under the mask."""
        return self.masks * torch.tensor([float(crop.has_lesion) for crop in self.crops])[:, None, None, None]


class CropSampler:
    """Draws square crops, jittered, turned, mirrored and with a random gamma.

    The data set is drawn first, so that each has its share whatever its size, then one of its lesions, or a place for a free shape.

    Args:
        slices: to draw from.
        size_px: side of the crops.
        seed: of all draws.
        normal_share: share of the crops without a lesion, in data sets that have lesions.
        counterfeit_share: share of those in which the free shape is filled with what is no lesion, see ``counterfeits.fill``.
        cover_share: share of the lesions that are hidden, so that no lesion is left, see ``counterfeits.cover``.
        disguise_share: share of the lesions that are changed a little and stay lesions, see ``counterfeits.disguise``.
        inside_share: share of the crops that are moved into the slice, as a transform moves its squares.
        whole_share: share of the crops in which everything is to be hidden; they show more of the slice.
        blur_share: share of the crops that are blurred a little.
        shares: data set -> its share of the draws; the other data sets share the rest equally.
        needs_lesion: False for ``draw_anywhere`` alone, which needs no lesion.

    Raises:
        TrainingInputError: no slice shows a lesion where one is needed, or a share names no data set of the slices.
    """

    def __init__(
        self,
        slices: Sequence[LabelledSlice],
        size_px: int,
        seed: int,
        *,
        normal_share: float = NORMAL_SHARE,
        counterfeit_share: float = 0.0,
        cover_share: float = 0.0,
        disguise_share: float = 0.0,
        inside_share: float = 0.0,
        whole_share: float = 0.0,
        blur_share: float = 0.0,
        shares: Mapping[str, float] | None = None,
        needs_lesion: bool = True,
    ) -> None:
        self.rng = np.random.RandomState(seed % 2**32)
        self.size_px = size_px
        self.normal_share, self.counterfeit_share = normal_share, counterfeit_share
        self.cover_share, self.disguise_share, self.inside_share = cover_share, disguise_share, inside_share
        self.whole_share, self.blur_share = whole_share, blur_share
        self.slices: dict[str, list[LabelledSlice]] = defaultdict(list)
        for each in slices:
            self.slices[each.dataset].append(each)
        self.lesions = {name: [s for s in group if s.has_lesion] for name, group in self.slices.items()}
        self.all_lesions = [s for s in slices if s.has_lesion]
        if needs_lesion and not self.all_lesions:
            raise TrainingInputError("no image shows a lesion: at least one entry needs a label with one")
        self.names = sorted(self.slices)
        self.chances = _chances(self.names, shares or {})
        self._tissue: dict[tuple[int, int], NDArray[np.bool_]] = {}  # the lesions of a slice share one

    def draw(self) -> Crop:
        """One crop with its caption; the mask is not dilated."""
        is_whole = self.whole_share > 0 and self.rng.rand() < self.whole_share
        for _ in range(DRAW_TRIES):
            name = self._dataset()
            if not self.lesions[name] or self.rng.rand() < self.normal_share:
                free = self._free_mask(self.slices[name])
                if free is not None:
                    return self._cut(*free, has_lesion=False, is_whole=is_whole)
            if self.lesions[name]:
                chosen = self.lesions[name][self.rng.randint(len(self.lesions[name]))]
                return self._cut(chosen, chosen.lesion, has_lesion=True, is_whole=is_whole)
        chosen = self.draw_lesion()
        return self._cut(chosen, chosen.lesion, has_lesion=True, is_whole=is_whole)

    def draw_lesion(self) -> LabelledSlice:
        """The slice of one lesion."""
        for _ in range(DRAW_TRIES):
            if lesions := self.lesions[self._dataset()]:
                return lesions[self.rng.randint(len(lesions))]
        return self.all_lesions[self.rng.randint(len(self.all_lesions))]

    def draw_anywhere(self, scale: float = 1.0) -> Tensor:
        """A crop (3, S, S) in [-1, 1] from anywhere on a slice.

        Args:
            scale: factor of the side that the crop has on the slice.
        """
        group = self.slices[self._dataset()]
        image = group[self.rng.randint(len(group))].image
        height, width = image.shape[-2:]
        low, high = np.log(ANYWHERE_SIDE_SHARE)
        side = float(np.exp(self.rng.uniform(low, high))) * max(height, width) * scale
        reach = np.maximum(np.array([height, width]) - 0.8 * side, 0) / 2
        centre = (np.array([height, width]) - 1) / 2 + self.rng.uniform(-1, 1, 2) * reach
        square, _ = cut_square(self.rng, (image.expand(3, -1, -1) + 1) / 2, centre, side, self.size_px)
        return square * 2 - 1

    def draw_batch(self, n: int) -> CropBatch:
        """``n`` crops, with the masks that hide them."""
        crops = [self.draw() for _ in range(n)]
        hidden = []
        for crop in crops:
            radius_px = self.rng.randint(MAX_DILATION_PX + 1)
            hidden.append(torch.ones_like(crop.mask) if crop.is_whole else grown(crop.mask, radius_px))
        images, masks = torch.stack([crop.image for crop in crops]), torch.stack([crop.mask for crop in crops])
        return CropBatch(images, masks, torch.stack(hidden), [crop.caption for crop in crops], crops)

    def lesion_caption(self, origin: LabelledSlice) -> str | None:
        """The caption of some lesion of the same modality and anatomy as a slice; None where there is none."""
        place_of = (origin.modality, origin.anatomy)
        lesions = [s for s in self.all_lesions if (s.modality, s.anatomy) == place_of]
        if not lesions:
            return None
        chosen = lesions[self.rng.randint(len(lesions))]
        return chosen.prompt or caption(self.rng, chosen.modality, chosen.anatomy, chosen.finding, None)

    def _dataset(self) -> str:
        return self.names[0] if len(self.names) == 1 else str(self.rng.choice(self.names, p=self.chances))

    def _free_mask(self, slices: Sequence[LabelledSlice]) -> tuple[LabelledSlice, NDArray[np.bool_]] | None:
        for _ in range(NORMAL_TRIES):
            chosen = slices[self.rng.randint(len(slices))]
            tissue = self._tissue_of(chosen)
            longer = max(tissue.shape)
            if self.rng.rand() < BORROWED_SHARE:
                outline = self.all_lesions[self.rng.randint(len(self.all_lesions))].lesion
                shape = borrow_shape(self.rng, outline, self.rng.uniform(0.5, 1.2) * longer / max(outline.shape))
            else:
                shape = random_blob(self.rng, max(4, int(self.rng.uniform(*BLOB_SHARE) * longer)))
            mask = place(self.rng, shape, tissue, tries=5)
            if mask is not None and mask.any():
                return chosen, mask
        return None

    def _tissue_of(self, chosen: LabelledSlice) -> NDArray[np.bool_]:
        """Mask of the tissue that can be repainted: not the dark surround, nothing near a label."""
        key = (id(chosen.stored), id(chosen.labelled))
        if key not in self._tissue:
            self._tissue[key] = normal_tissue((chosen.image.amax(0).numpy() + 1) / 2, chosen.labelled)
        return self._tissue[key]

    def _cut(self, chosen: LabelledSlice, mask: NDArray[np.bool_], *, has_lesion: bool, is_whole: bool) -> Crop:
        longest = max(mask.shape)
        side_px = self.rng.uniform(*WHOLE_SIDE_SHARE) * longest if is_whole else None
        centre, side_px = square_around(self.rng, mask, longest, side_px=side_px)
        if self._chance(self.inside_share):
            half, size = side_px / 2, np.array(mask.shape)
            centre = np.where(side_px < size, np.clip(centre, half - 0.5, size - half - 0.5), (size - 1) / 2)
        stacked = torch.cat([(chosen.image.expand(3, -1, -1) + 1) / 2, torch.from_numpy(mask)[None].float()])
        image, coverage = cut_square(self.rng, stacked, centre, side_px, self.size_px)
        hard = coverage > 0.5 if bool((coverage > 0.5).any()) else coverage > 0
        text = self._caption(chosen, image, hard, float(mask.mean()), has_lesion)
        if not has_lesion and self._chance(self.counterfeit_share):
            image = fill(self.rng, image, hard.float(), tissue=self._foreign_tissue, lesion=partial(self._foreign_lesion, chosen.dataset))
        elif has_lesion and self._chance(self.cover_share):
            image, has_lesion = cover(self.rng, image, hard.float(), tissue=self._foreign_tissue), False
        elif has_lesion and self._chance(self.disguise_share):
            image = disguise(self.rng, image, hard.float())
        if self._chance(self.blur_share):
            image = blurred(image[None], self.rng.uniform(0.4, 1.3))[0]
        return Crop(image * 2 - 1, hard.float(), text, has_lesion, is_whole, chosen)

    def _caption(self, chosen: LabelledSlice, image: Tensor, hard: Tensor, fraction: float, has_lesion: bool) -> str:
        if chosen.prompt and (has_lesion or not chosen.has_lesion):
            return chosen.prompt
        if not chosen.modality or not chosen.anatomy:
            return NORMAL
        if not has_lesion:
            finding = NORMAL if chosen.has_lesion else chosen.finding
            return caption(self.rng, chosen.modality, chosen.anatomy, finding, None)
        is_measurable = bool(hard.any()) and not bool(hard.all())
        attributes = measure(image.mean(0).numpy(), hard[0].numpy(), fraction) if is_measurable else None
        return caption(self.rng, chosen.modality, chosen.anatomy, chosen.finding, attributes)

    def _chance(self, share: float) -> bool:
        """An event of this share; without a draw where it never happens."""
        return share > 0 and self.rng.rand() < share

    def _foreign_tissue(self) -> tuple[Tensor, Tensor]:
        """Normal tissue of any data set (3, S, S) in [0, 1], and a free shape on it (1, S, S)."""
        for _ in range(DRAW_TRIES):
            free = self._free_mask(self.slices[self._dataset()])
            if free is not None:
                return self._square(*free)
        return self._foreign_lesion("")  # the slices have no room for normal tissue

    def _foreign_lesion(self, dataset: str) -> tuple[Tensor, Tensor]:
        """A lesion of another data set (3, S, S) in [0, 1] and its mask (1, S, S); of this one where there is no other."""
        for _ in range(DRAW_TRIES):
            chosen = self.draw_lesion()
            if chosen.dataset != dataset:
                break
        return self._square(chosen, chosen.lesion)

    def _square(self, chosen: LabelledSlice, mask: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        centre, side_px = square_around(self.rng, mask, max(mask.shape))
        stacked = torch.cat([(chosen.image.expand(3, -1, -1) + 1) / 2, torch.from_numpy(mask)[None].float()])
        image, coverage = cut_square(self.rng, stacked, centre, side_px, self.size_px)
        return image, (coverage > 0.5).float()


def _chances(names: Sequence[str], shares: Mapping[str, float]) -> NDArray[np.float64]:
    """The chance of each data set."""
    unknown = sorted(set(shares) - set(names))
    if unknown:
        raise TrainingInputError(f"no data set {unknown[0]!r} in the datalist; its entries name {', '.join(filter(None, names)) or 'none'}")
    named, others = float(sum(shares.values())), len(names) - len(shares)
    if min(shares.values(), default=0.0) < 0 or named > 1 or not (others or named):
        raise TrainingInputError(f"the shares of data sets must be 0 or more and no more than 1 together, got {dict(shares)}")
    chances = np.array([shares.get(name, (1 - named) / max(others, 1)) for name in names])
    scaled: NDArray[np.float64] = chances / chances.sum()
    return scaled
