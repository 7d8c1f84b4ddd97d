"""Write an edit into the label: the class id replaces the label's value, it is never added to it."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils.type_conversion import get_equivalent_dtype
from torch import Tensor

from monai_diffaug.geometry.slices import hit_along

__all__ = ["check_label_value", "paint_label"]


def check_label_value(dtype: Any, value: int) -> None:
    """Raise ValueError unless the class id is in the range of the label's dtype (of NumPy or torch).

    >>> check_label_value(torch.uint8, 255)
    """
    torch_dtype: torch.dtype = get_equivalent_dtype(dtype, Tensor)
    if torch_dtype.is_floating_point or torch_dtype == torch.bool:
        return
    limits = torch.iinfo(torch_dtype)
    if not limits.min <= value <= limits.max:
        raise ValueError(f"label_value {value} does not fit the label's dtype {torch_dtype}; convert the label before")


def paint_label(label: Tensor, mask: Tensor, value: int) -> Tensor:
    """A copy of the label with ``value`` inside the mask (0 erases), same dtype.

    Args:
        label: (1, ...) class ids.
        mask: (1, ...) on the same grid, non-zero means inside.
        value: class id of the edit.

    Raises:
        ValueError: the value does not fit the label's dtype.

    >>> paint_label(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 1, 1]]]), 2).tolist()
    [[[0, 2, 2]]]
    """
    check_label_value(label.dtype, value)
    painted = label.clone()
    hits = hit_along(mask, 1).nonzero().flatten()
    if len(hits):
        rows = slice(int(hits[0]), int(hits[-1]) + 1)
        painted[:, rows].masked_fill_(mask[:, rows] != 0, value)
    return painted
