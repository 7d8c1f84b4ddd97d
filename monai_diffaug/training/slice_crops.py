"""Training crops around the user's lesions and on the normal tissue beside them, each with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.masks.shapes import borrow_shape, place, random_blob
from monai_diffaug.masks.tissue import normal_tissue
from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.captions import caption, measure
from monai_diffaug.training.crops import cut_square, grown, square_around
from monai_diffaug.training.embedded.latent_bank import MAX_DILATION_PX, NORMAL_SHARE
from monai_diffaug.training.labelled_slices import LabelledSlice
from monai_diffaug.training.run_settings import TrainingInputError

__all__ = ["Crop", "SliceCropSampler"]

BLOB_SHARE = (0.04, 0.42)  # diameter of a free shape, as a share of the slice's longer side
NORMAL_TRIES = 20


class Crop(NamedTuple):
    """One training example.

    Attributes:
        image: (3, S, S) in [-1, 1].
        mask: (1, S, S) in {0, 1}: the lesion, or where a lesion could be.
        caption: what is seen under the mask.
        is_normal: there is no lesion under the mask.
    """

    image: Tensor
    mask: Tensor
    caption: str
    is_normal: bool


class SliceCropSampler:
    """Draws square crops, jittered, turned, mirrored, with a random gamma: lesions under their own mask, tissue under free shapes.

    Args:
        slices: what to draw from; at least one with a lesion.
        size_px: side of the crops.
        seed: of all draws.
        normal_share: share of the crops that show normal tissue (where there is any), so that the model keeps knowing it.

    Raises:
        TrainingInputError: no slice shows a lesion.
    """

    def __init__(self, slices: Sequence[LabelledSlice], size_px: int, seed: int, normal_share: float = NORMAL_SHARE) -> None:
        self.rng = np.random.RandomState(seed % 2**32)
        self.lesions = [s for s in slices if not s.is_normal]
        self.slices = list(slices)
        self.size_px = size_px
        self.normal_share = normal_share
        if not self.lesions:
            raise TrainingInputError("no image shows a lesion: at least one entry needs a label with one")
        self._tissue: dict[tuple[int, int], NDArray[np.bool_]] = {}  # one for the lesions of a slice

    def draw(self) -> Crop:
        """One crop with its caption; the mask is not dilated."""
        if self.rng.rand() < self.normal_share:
            free = self._free_mask()
            if free is not None:
                return self._cut(*free, is_normal=True)
        chosen = self.lesions[self.rng.randint(len(self.lesions))]
        return self._cut(chosen, chosen.lesion, is_normal=False)

    def draw_batch(self, n: int) -> tuple[Tensor, Tensor, list[str]]:
        """Images (n, 3, S, S), masks (n, 1, S, S), each grown by 0 to 3 pixels, and captions."""
        crops = [self.draw() for _ in range(n)]
        masks = []
        for crop in crops:
            masks.append(grown(crop.mask, self.rng.randint(MAX_DILATION_PX + 1)))
        return torch.stack([crop.image for crop in crops]), torch.stack(masks), [crop.caption for crop in crops]

    def _free_mask(self) -> tuple[LabelledSlice, NDArray[np.bool_]] | None:
        for _ in range(NORMAL_TRIES):
            index = self.rng.randint(len(self.slices))
            tissue = self._tissue_of(index)
            longer = max(tissue.shape)
            if self.rng.rand() < 0.6:
                outline = self.lesions[self.rng.randint(len(self.lesions))].lesion
                shape = borrow_shape(self.rng, outline, self.rng.uniform(0.5, 1.2) * longer / max(outline.shape))
            else:
                shape = random_blob(self.rng, max(4, int(self.rng.uniform(*BLOB_SHARE) * longer)))
            mask = place(self.rng, shape, tissue, tries=5)
            if mask is not None and mask.any():
                return self.slices[index], mask
        return None

    def _tissue_of(self, index: int) -> NDArray[np.bool_]:
        """Where normal tissue can be repainted: not the dark surround, not near anything labelled."""
        chosen = self.slices[index]
        key = (id(chosen.stored), id(chosen.labelled))
        if key not in self._tissue:
            self._tissue[key] = normal_tissue((chosen.image.amax(0).numpy() + 1) / 2, chosen.labelled)
        return self._tissue[key]

    def _cut(self, chosen: LabelledSlice, mask: NDArray[np.bool_], *, is_normal: bool) -> Crop:
        centre, side_px = square_around(self.rng, mask, max(mask.shape))
        stacked = torch.cat([(chosen.image.expand(3, -1, -1) + 1) / 2, torch.from_numpy(mask)[None].float()])
        image, coverage = cut_square(self.rng, stacked, centre, side_px, self.size_px)
        hard = coverage > 0.5 if bool((coverage > 0.5).any()) else coverage > 0
        return Crop(image * 2 - 1, hard.float(), self._caption(chosen, image, hard, float(mask.mean()), is_normal), is_normal)

    def _caption(self, chosen: LabelledSlice, image: Tensor, hard: Tensor, fraction: float, is_normal: bool) -> str:
        if chosen.prompt and not (is_normal and not chosen.is_normal):
            return chosen.prompt
        if not chosen.modality or not chosen.anatomy:
            return NORMAL
        attributes = None
        if not is_normal and bool(hard.any()) and not bool(hard.all()):
            attributes = measure(image.mean(0).numpy(), hard[0].numpy(), fraction)
        return caption(self.rng, chosen.modality, chosen.anatomy, NORMAL if is_normal else chosen.finding, attributes)
