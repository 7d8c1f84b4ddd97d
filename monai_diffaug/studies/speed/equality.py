"""The gate before every figure of speed: both arms compute the same image, or no speed is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from monai_diffaug.studies.speed.timed_volumes import Volume

__all__ = ["TOLERANCE", "Gate", "compare"]

TOLERANCE = 2e-5  # of the model's range [-1, 1], in float32
HALF_A_LEVEL = 0.5 / 127.5  # a rival that returns 8 bit is off by rounding
HALF_PRECISION = 0.2  # in bfloat16 both arms round after each operation, each in its own order; equality is shown in float32


@dataclass(frozen=True)
class Gate:
    """What a comparison found.

    Attributes:
        largest_difference: inside the mask, in the model's range [-1, 1].
        allowed: the tolerance.
        changed_outside: voxels outside the mask that are not bit-identical to the original.
        changed_inside: share of the voxels inside the mask that are; an edit that did nothing proves nothing.
    """

    largest_difference: float
    allowed: float
    changed_outside: int
    changed_inside: float

    @property
    def passed(self) -> bool:
        """The arms agree, and the edit did something inside the mask and nothing outside."""
        return self.largest_difference <= self.allowed and self.changed_outside == 0 and self.changed_inside > 0.5

    def as_dict(self) -> dict[str, float | int | bool]:
        return {**asdict(self), "passed": self.passed}


def compare(ours: Tensor, rival: Tensor, volume: Volume, allowed: float = TOLERANCE) -> Gate:
    """Compare edited slices (D, 1, H, W) in grey values from 0 to 255."""
    inside = volume.masks > 0
    difference = ((ours - rival).abs() * inside).max() / 127.5
    return Gate(
        float(difference),
        allowed,
        int((ours != volume.slices)[~inside].sum()),
        float((ours != volume.slices)[inside].float().mean()) if bool(inside.any()) else 0.0,
    )


def agree(one: Tensor, other: Tensor, allowed: float) -> bool:
    """Largest absolute difference of two tensors within a tolerance, and nothing that is not a number."""
    return bool(torch.isfinite(one).all()) and float((one - other).abs().max()) <= allowed
