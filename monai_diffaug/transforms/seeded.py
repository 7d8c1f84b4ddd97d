"""The random part that the transforms share: a trigger and one seed per call, always both, whatever the data."""

from __future__ import annotations

from typing import Any

from monai.transforms.transform import RandomizableTransform

from monai_diffaug.edit.signature import Described
from monai_diffaug.sampling.seeding import draw_seed

__all__ = ["SeededTransform"]


class SeededTransform(RandomizableTransform, Described):
    """A ``RandomizableTransform`` whose ``randomize`` draws the trigger and a uint32 ``seed``; the result is a function of the seed.

    Args:
        prob: probability of being applied.
    """

    def __init__(self, prob: float = 1.0) -> None:
        RandomizableTransform.__init__(self, prob)
        self.seed = 0

    def randomize(self, data: Any | None = None) -> None:
        """Draw the trigger and one seed, always both."""
        super().randomize(None)
        self.seed = draw_seed(self.R)
