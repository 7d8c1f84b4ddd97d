"""Reject lesions that repeat a training lesion: a guard against a generator that reproduces its training images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms.transform import Transform
from monai.utils.enums import TransformBackends

from monai_diffaug.data.lesion_bank import LesionBank, load_lesion_bank
from monai_diffaug.edit.signature import Described
from monai_diffaug.models.registry import ModelSpec, shared_model

__all__ = ["LesionNovelty", "Novelty"]

logger = logging.getLogger(__name__)


class Novelty(NamedTuple):
    """The guard's verdict on one lesion.

    Attributes:
        novel: its similarity is below ``limit``.
        similarity: correlation with the nearest training lesion inside the mask, in [-1, 1].
        image: number of the image of that lesion, in the order in which the bank was made; -1 when nothing could be compared.
        limit: least similarity at which a lesion is rejected.
        reason: why it is rejected, empty when it is not.

    >>> Novelty(novel=True, similarity=0.4, image=3, limit=0.9, reason="").novel
    True
    """

    novel: bool
    similarity: float
    image: int
    limit: float
    reason: str


class LesionNovelty(Transform, Described):
    """Reject a generated lesion that is closer to a training lesion than real lesions are to each other; deterministic.

    Compared are grey values inside the mask at 32 x 32 pixels, up to mirroring, quarter turns, small shifts, small changes of size,
    brightness and contrast (``monai_diffaug.data.lesion_bank``). Meant for lesions that are painted into normal tissue: an edit *of* a
    training lesion (``presets.mila_tmgdiff``) is close to it by design.

    Args:
        bank: the training lesions, a ``LesionBank`` or the file of a saved one. With a file the instance stays small when it is pickled,
            and a process reads it once.
        quantile: share of new real lesions that is rejected by mistake, about. The limit is the 1 - ``quantile`` quantile of the
            similarities among real lesions of different groups.
        limit: least similarity at which a lesion is rejected; replaces the quantile.
        exempt_donor: a transplant (``TransplantLesiond``) is not compared with lesions of its donor's group, which it repeats by design;
            copies of all others are still rejected.

    Raises:
        FileNotFoundError: no such file.
        ValueError: quantile or limit out of range.

    >>> import torch
    >>> label = torch.zeros(1, 48, 48)
    >>> label[:, 12:36, 12:36] = 1
    >>> images = torch.rand(3, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    >>> guard = LesionNovelty(LesionBank.of([{"image": image, "label": label} for image in images]), limit=0.9)
    >>> guard(images[1], label).reason, guard(torch.rand(1, 48, 48, generator=torch.Generator().manual_seed(1)), label).novel
    ('copy of training lesion 1: correlation 1.00 >= 0.90', True)
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(
        self, bank: LesionBank | str | Path, quantile: float = 0.05, *, limit: float | None = None, exempt_donor: bool = False
    ) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
        if limit is not None and not 0 < limit <= 1:
            raise ValueError(f"limit must lie in (0, 1], got {limit}")
        if not isinstance(bank, LesionBank) and not Path(bank).is_file():
            raise FileNotFoundError(f"lesion bank {bank}: no such file; make one by LesionBank.of(...).save(path)")
        self.source: LesionBank | ModelSpec = bank if isinstance(bank, LesionBank) else ModelSpec("lesion_bank", str(bank))
        self.quantile = quantile
        self.fixed_limit = limit
        self.exempt_donor = exempt_donor
        if isinstance(bank, LesionBank) and limit is None and len(bank.yardstick) * quantile < 1:
            logger.warning("the %g quantile of %d lesions is their nearest pair; more would make it firm", quantile, len(bank.yardstick))

    @property
    def bank(self) -> LesionBank:
        """The training lesions, read at first use."""
        return self.source if isinstance(self.source, LesionBank) else shared_model(self.source, "cpu", load_lesion_bank)

    @property
    def limit(self) -> float:
        """Least similarity at which a lesion is rejected."""
        return float(np.quantile(self.bank.yardstick, 1 - self.quantile)) if self.fixed_limit is None else self.fixed_limit

    def __call__(self, image: NdarrayOrTensor, mask: NdarrayOrTensor, *, donor_group: str = "") -> Novelty:
        """Judge the lesion in a mask.

        Args:
            image: (C, H, W[, D]), any unit; as many channels as the images of the bank.
            mask: (1, H, W[, D]) on the same grid, non-zero where the lesion was painted. Components of fewer than 25 pixels are not
                judged.
            donor_group: group of the lesion's donor, as the record of a transplant names it; used with ``exempt_donor``.

        Raises:
            GridMismatchError: the mask is on another grid.
            ValueError: other channels than the bank, or non-finite voxels.
        """
        similarity, origin = self.bank.nearest(image, mask, exempt_group=donor_group if self.exempt_donor and donor_group else None)
        limit = self.limit
        if similarity < limit:
            return Novelty(True, similarity, origin, limit, "")
        return Novelty(False, similarity, origin, limit, f"copy of training lesion {origin}: correlation {similarity:.2f} >= {limit:.2f}")
