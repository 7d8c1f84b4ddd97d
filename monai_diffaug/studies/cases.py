"""One labelled image of a study."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.prompts import NORMAL

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """One image of a study.

    Attributes:
        image: (C, H, W) uint8.
        label: (H, W) bool, the lesion; empty when there is none.
        finding: its word; "normal tissue" when there is none.
        modality, anatomy: words of the prompt.
        group: near-duplicates share one.
        index: in the source; -1 for a synthetic image.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.bool_]
    finding: str
    modality: str
    anatomy: str
    group: int = -1
    index: int = -1

    @property
    def is_normal(self) -> bool:
        return self.finding == NORMAL
