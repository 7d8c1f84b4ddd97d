"""Write an edit into the label: painted, never added arithmetically."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils.type_conversion import get_equivalent_dtype
from torch import Tensor

from monai_diffaug.geometry.slices import hit_along

__all__ = ["check_label_value", "paint_label"]


def check_label_value(dtype: Any, value: int) -> None:
    """Raise ValueError unless a label of this dtype, NumPy's or torch's, can hold the class id."""
    held: torch.dtype = get_equivalent_dtype(dtype, Tensor)
    if held.is_floating_point or held == torch.bool:
        return
    limits = torch.iinfo(held)
    if not limits.min <= value <= limits.max:
        raise ValueError(f"label_value {value} does not fit the label's dtype {held}; convert the label before")


def paint_label(label: Tensor, mask: Tensor, value: int) -> Tensor:
    """A copy of the label with ``value`` where the mask is non-zero (0 erases), same dtype.

    Args:
        label: (1, ...) class ids.
        mask: (1, ...) on the same grid.
        value: the class id that the edit adds.

    Raises:
        ValueError: the value does not fit the label's dtype.
    """
    check_label_value(label.dtype, value)
    painted = label.clone()
    hits = hit_along(mask, 1).nonzero().flatten()
    if len(hits):
        rows = slice(int(hits[0]), int(hits[-1]) + 1)
        painted[:, rows].masked_fill_(mask[:, rows] != 0, value)
    return painted
