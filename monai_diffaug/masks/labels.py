"""Class ids of a label: integers, compared and kept as such; an edit replaces the label's value, it is never added to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from monai.utils.type_conversion import get_equivalent_dtype
from torch import Tensor

from monai_diffaug.geometry.slices import hit_along

__all__ = ["ID_TOLERANCE", "check_label_value", "class_ids", "paint_label", "voxels_of", "voxels_of_any"]

ID_TOLERANCE = 1e-3  # of a class id that was stored as a float: 2.9999992 is class 3


def check_label_value(dtype: Any, value: int) -> None:
    """Raise ValueError unless the label's dtype (of NumPy or torch) can hold the class id.

    >>> check_label_value(torch.uint8, 255)
    """
    torch_dtype: torch.dtype = get_equivalent_dtype(dtype, Tensor)
    if torch_dtype == torch.bool:
        fits = value in (0, 1)
    elif torch_dtype.is_floating_point:
        fits = abs(value) <= torch.finfo(torch_dtype).max and torch.tensor(float(value), dtype=torch_dtype).item() == value
    else:
        limits = torch.iinfo(torch_dtype)
        fits = limits.min <= value <= limits.max
    if not fits:
        raise ValueError(f"label_value {value} does not fit the label's dtype {torch_dtype}; convert the label before")


def class_ids(label: Tensor, tolerance: float = ID_TOLERANCE) -> Tensor:
    """The class ids of a label as int64; floats that are almost whole numbers are rounded.

    Args:
        label: any shape, any dtype.
        tolerance: largest distance of a float from its class id.

    Raises:
        ValueError: voxels are not finite, or farther from a whole number.

    >>> class_ids(torch.tensor([0.0, 2.9999992, 9.0])).tolist()
    [0, 3, 9]
    """
    if not label.dtype.is_floating_point:
        return label.to(torch.int64)
    rounded = label.round()
    whole = (label - rounded).abs() <= tolerance  # False for NaN and infinity
    if not bool(whole.all()):
        other = label[~whole]
        raise ValueError(
            f"the label has {other.numel()} voxels that are no whole number, e.g. {float(other[0]):.6g}; class ids need resampling with "
            "mode='nearest' (MONAI's lazy resampling ignores it: use lazy=False), or round the label first"
        )
    return rounded.to(torch.int64)


def voxels_of(label: Tensor, value: int | None) -> Tensor:
    """Voxels of a class, bool; ``None`` means any class above 0.

    Torch compares a uint8 label with -1 or 257 by wrapping (255 is equal to -1); here a value that the dtype cannot hold is refused.

    Raises:
        ValueError: the dtype cannot hold the value, or the label has voxels that are no whole number.

    >>> voxels_of(torch.tensor([0.0, 1.0, 1.9999999]), 2).tolist()
    [False, False, True]
    """
    if value is not None:
        check_label_value(label.dtype, value)
    if label.dtype.is_floating_point or label.dtype in (torch.uint16, torch.uint32, torch.uint64):
        label = class_ids(label)
    return label > 0 if value is None else label == value


def voxels_of_any(label: Tensor, values: Iterable[int]) -> Tensor:
    """Voxels whose class is one of several, bool; no voxels without a class.

    Raises:
        ValueError: as ``voxels_of``.

    >>> voxels_of_any(torch.tensor([0, 1, 2, 3]), (1, 3)).tolist()
    [False, True, False, True]
    """
    chosen = torch.zeros(label.shape, dtype=torch.bool, device=label.device)
    for value in values:
        chosen |= voxels_of(label, value)
    return chosen


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
