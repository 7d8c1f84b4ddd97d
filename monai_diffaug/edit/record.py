"""The record a sample carries about its edit: plain str, int, float and bool, so that MONAI's collate accepts it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["EMPTY_BECAUSE", "RECORD_POSTFIX", "DiffAugRecord", "original_key", "record_key"]

EMPTY_BECAUSE = "empty_because"
"""Meta data of a mask that is a ``MetaTensor``: why it is empty, which the record of the edit repeats."""
RECORD_POSTFIX = "diffaug"


@dataclass
class DiffAugRecord:
    """One edit of one image; every field is always present, with the same type.

    Attributes:
        applied: the image was changed: what to count for the number of edits.
        accepted: the validator's verdict; True while nobody has validated, so too where there is no edit.
        seed: the uint32 the noise was drawn from.
        prompt: the text the model was given.
        model: the model's source.
        n_slices: number of 2-D slices repainted.
        score: the validator's score in [0, 1]; -1 while nobody has validated.
        tries: number of candidates generated.
        reason: why nothing was applied or accepted, empty otherwise.
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

    def as_dict(self) -> dict[str, str | int | float | bool]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> DiffAugRecord:
        return cls(**{f.name: record[f.name] for f in fields(cls)})


def original_key(key: Hashable) -> str:
    """Where the inpainting transform hands on the untouched item of ``key``, for a validator that may put it back."""
    return f"{key}_original"


def record_key(key: str, postfix: str = RECORD_POSTFIX) -> str:
    """The dictionary key of the record of image ``key``."""
    return f"{key}_{postfix}"
