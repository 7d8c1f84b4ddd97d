"""Comparison of the edited images of two arms, before they are timed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from monai_diffaug.studies.speed.timed_edits import Volume

__all__ = ["HALF_A_LEVEL", "HALF_PRECISION", "TOLERANCE", "Gate", "compare"]

TOLERANCE = 2e-5  # of the model's range [-1, 1], in float32
HALF_A_LEVEL = 0.5 / 127.5  # rounding of a rival that returns 8 bit
HALF_PRECISION = 0.2  # in bfloat16 both arms round after each operation, in another order; equality is checked in float32


@dataclass(frozen=True)
class Gate:
    """Largest difference of two arms inside the mask, in the model's range [-1, 1], its tolerance, and the change of the original.

    ``changed_outside`` is a number of voxels, ``changed_inside`` a share: two arms that do not edit would be equal.
    """

    largest_difference: float
    allowed: float
    changed_outside: int
    changed_inside: float

    @property
    def passed(self) -> bool:
        """Whether the arms are equal, and the edit changed voxels inside the mask only."""
        return self.largest_difference <= self.allowed and self.changed_outside == 0 and self.changed_inside > 0.5

    def as_dict(self) -> dict[str, float | int | bool]:
        """Attributes and ``passed``, for JSON."""
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
