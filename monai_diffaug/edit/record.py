"""The record of one edit in a sample: plain str, int, float and bool, so that MONAI's collate accepts it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["EMPTY_BECAUSE", "RECORD_POSTFIX", "DiffAugRecord", "original_key", "record_key"]

EMPTY_BECAUSE = "empty_because"
"""Key in the meta data of a mask (``MetaTensor``): the reason why it is empty, which the record of the edit repeats."""
RECORD_POSTFIX = "diffaug"


@dataclass
class DiffAugRecord:
    """One edit of one image; every field is always present, with the same type.

    Attributes:
        applied: the image was changed. Count edits by this field.
        accepted: the validator's verdict; True before validation, and for images that were not edited.
        seed: uint32 that the noise was drawn from.
        prompt: text that the model got.
        model: source of the model.
        n_slices: number of repainted 2-D slices.
        score: the validator's score in [0, 1]; -1 before validation.
        tries: number of candidates.
        reason: why nothing was applied or accepted, else empty.
        contrast: median inside the mask less median of the rim around it, in the unit of the image, of the last candidate that was decoded;
            0 without one. See ``Contrast``.
        cnr: the same in standard deviations of the rim (contrast-to-noise ratio).
        size_mm: longest side of the mask's bounding box in mm, or in pixels without an affine; 0 for an empty mask and without an edit.

    >>> record = DiffAugRecord(applied=True, seed=7).as_dict()
    >>> record["applied"], record["reason"], DiffAugRecord.from_dict(record).seed
    (True, '', 7)
    """

    applied: bool = False
    accepted: bool = True
    seed: int = 0
    prompt: str = ""
    model: str = ""
    n_slices: int = 0
    score: float = -1.0
    tries: int = 0
    reason: str = ""
    contrast: float = 0.0
    cnr: float = 0.0
    size_mm: float = 0.0

    def as_dict(self) -> dict[str, str | int | float | bool]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> DiffAugRecord:
        return cls(**{f.name: record[f.name] for f in fields(cls)})


def original_key(key: Hashable) -> str:
    """Key of the untouched item of ``key``, which a validator may put back."""
    return f"{key}_original"


def record_key(key: str, postfix: str = RECORD_POSTFIX) -> str:
    """The dictionary key of the record of image ``key``."""
    return f"{key}_{postfix}"
