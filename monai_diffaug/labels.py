"""Write an edit into the label: painted, never added arithmetically."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["paint_label"]


def paint_label(label: Tensor, mask: Tensor, value: int) -> Tensor:
    """A copy of the label with ``value`` where the mask is non-zero (0 erases), same dtype.

    Args:
        label: (1, ...) class ids.
        mask: (1, ...) on the same grid.
        value: the class id that the edit adds.

    Raises:
        ValueError: the value does not fit the label's dtype.
    """
    if not label.dtype.is_floating_point and label.dtype != torch.bool:
        limits = torch.iinfo(label.dtype)
        if not limits.min <= value <= limits.max:
            raise ValueError(f"label_value {value} does not fit the label's dtype {label.dtype}; convert the label before")
    return torch.where(mask != 0, torch.full_like(label, value), label)
