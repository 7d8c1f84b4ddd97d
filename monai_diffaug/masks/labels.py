"""Class ids of a label: integers, compared and kept as such; an edit replaces the label's value, it is never added to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from monai.utils.type_conversion import get_equivalent_dtype
from torch import Tensor

from monai_diffaug.geometry.slices import hit_along

__all__ = [
    "ID_TOLERANCE",
    "LabelValue",
    "check_class_ids",
    "check_label_value",
    "check_painted_label",
    "class_ids",
    "class_values",
    "paint_label",
    "voxels_of",
    "voxels_of_any",
]

LabelValue = int | Sequence[int]
"""The class id that an edit paints, or several, the lowest priority first, see ``paint_label``."""

PICTURE_WHITE = 255
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


def check_painted_label(label: Tensor, mask: Tensor, value: LabelValue, dtype: Any = None) -> None:
    """Check that a value, or the class ids of a mask, can be painted into a label.

    Args:
        label: (1, ...), any dtype.
        mask: (1, ...) on the same grid.
        value: see ``paint_label``.
        dtype: of the label as it was given (of NumPy or torch); None takes that of ``label``.

    Raises:
        ValueError: the label's dtype cannot hold the value, the mask has other values than the class ids, or the label is a picture of a
            mask (0 and 255).
    """
    values = class_values(value)
    if not values or len(set(values)) < len(values):
        raise ValueError(f"label_value must be one class id, or several different ones, the lowest priority first, got {value}")
    for each in values:
        check_label_value(label.dtype if dtype is None else dtype, each)
    check_class_ids(label, values)
    if isinstance(value, Sequence):
        other = mask[(mask != 0) & ~voxels_of_any(mask, values)]
        if other.numel():
            raise ValueError(
                f"the mask has the value {float(other[0]):g}, and label_value names the classes {', '.join(map(str, values))}: with "
                "several classes the mask must hold their class ids; name all of them, or give one label_value for the whole mask"
            )


def class_values(value: LabelValue) -> tuple[int, ...]:
    """The class ids that a ``label_value`` names.

    >>> class_values(3), class_values([2, 1])
    ((3,), (2, 1))
    """
    return tuple(value) if isinstance(value, Sequence) else (value,)


def check_class_ids(label: Tensor, values: Sequence[int]) -> None:
    """Raise ValueError if a label holds 0 and 255 alone and other class ids are meant: it is the picture of a mask.

    >>> check_class_ids(torch.tensor([0, 1, 255]), [1])  # 255 is a class among others
    """
    if label.numel() == 0 or label.dtype == torch.bool or {*values} <= {0, PICTURE_WHITE}:
        return
    if float(label.max()) == PICTURE_WHITE and bool(((label == 0) | (label == PICTURE_WHITE)).all()):
        raise ValueError(
            f"the label holds 0 and {PICTURE_WHITE} alone, the picture of a mask, and label_value is {', '.join(map(str, values))}: make "
            f"class ids of it before, AsDiscreted('label', threshold=128), or give label_value={PICTURE_WHITE}; where it means "
            "unknown, MapLabelValued makes it -1"
        )


def paint_label(label: Tensor, mask: Tensor, value: LabelValue) -> Tensor:
    """A copy of the label with the class of the edit inside the mask, same dtype; all other voxels, e.g. of organs, keep their value.

    Args:
        label: (1, ...) class ids.
        mask: (1, ...) on the same grid, non-zero means inside.
        value: class id of the edit, 0 erases; or several class ids, the lowest priority first: then the mask holds class ids, which are
            painted, and a voxel whose label is a class of higher priority keeps it.

    Raises:
        ValueError: see ``check_painted_label``, which names more faults; here only a value that does not fit the label's dtype.

    >>> paint_label(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 1, 1]]]), 2).tolist()
    [[[0, 2, 2]]]
    >>> paint_label(torch.tensor([[[9, 0, 4, 1]]]), torch.tensor([[[2, 4, 2, 2]]]), (2, 1, 4)).tolist()  # oedema, core, enhancing
    [[[2, 4, 4, 1]]]
    """
    for each in class_values(value):
        check_label_value(label.dtype, each)
    painted = label.clone()
    hits = hit_along(mask, 1).nonzero().flatten()
    if len(hits):
        rows = slice(int(hits[0]), int(hits[-1]) + 1)
        inside, here = mask[:, rows], painted[:, rows]
        if not isinstance(value, Sequence):
            here.masked_fill_(inside != 0, value)
        else:
            before = label[:, rows]
            for k, each in enumerate(value):
                here.masked_fill_(voxels_of(inside, each) & ~voxels_of_any(before, value[k + 1 :]), each)
    return painted
