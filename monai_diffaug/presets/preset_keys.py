"""Names that the presets share, and the mask of a whole image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform
from monai.utils.type_conversion import convert_to_dst_type

from monai_diffaug.edit.signature import Described
from monai_diffaug.prompts import NORMAL, compose_prompt, vocabulary_of

__all__ = ["WRITTEN_KEYS", "Finding", "WholeImaged", "check_keys", "normal_prompt"]

Finding = str | Sequence[str] | None
WRITTEN_KEYS = ("mask", "prompt", "edges")  # written by the presets in addition to image, label and record


class WholeImaged(MapTransform, Described):
    """Write a mask of ones on the grid of a label: the whole image is repainted."""

    def __init__(self, keys: KeysCollection, mask_key: str = "mask") -> None:
        MapTransform.__init__(self, keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            ones = torch.ones(tuple(d[key].shape))
            d[self.mask_key] = convert_to_dst_type(ones, d[key], dtype=torch.uint8)[0]
        return d


def check_keys(*keys: str | None) -> None:
    """Raise ValueError if an item of the user has a name that a preset writes: the item would be lost."""
    for key in keys:
        if key in WRITTEN_KEYS:
            raise ValueError(
                f"the preset writes {key!r} itself, and your item of that name would be lost; rename it before, e.g. with "
                f"CopyItemsd({key!r}, names='label')"
            )


def normal_prompt(modality: str, anatomy: str) -> str:
    """The prompt of normal tissue.

    >>> normal_prompt("us", "breast")
    'ultrasound of breast, normal tissue'
    """
    return compose_prompt(vocabulary_of(modality).modality, anatomy, NORMAL)
