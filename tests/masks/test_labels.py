from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from monai_diffaug.masks.labels import check_label_value, paint_label


def test_the_class_id_replaces_the_label() -> None:
    label = torch.tensor([[[0, 1, 2]]], dtype=torch.uint8)
    assert paint_label(label, torch.tensor([[[0, 1, 9]]]), 2).tolist() == [[[0, 2, 2]]]
    assert paint_label(label, torch.tensor([[[0, 1, 9]]]), 0).tolist() == [[[0, 0, 0]]]
    assert label.tolist() == [[[0, 1, 2]]]


def test_a_value_that_does_not_fit_the_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="300 does not fit"):
        paint_label(torch.zeros(1, 2, dtype=torch.uint8), torch.ones(1, 2), 300)


@pytest.mark.parametrize(("dtype", "value"), [(torch.uint8, 300), (np.dtype("uint16"), -1), (np.int8, 128)])
def test_a_value_out_of_the_range_of_a_numpy_dtype_is_refused(dtype: Any, value: int) -> None:
    with pytest.raises(ValueError, match=f"label_value {value} does not fit"):
        check_label_value(dtype, value)
    check_label_value(dtype, 1)
    check_label_value(np.dtype("float32"), value)


def test_voxels_outside_the_mask_and_the_original_label_are_not_changed() -> None:
    label = torch.arange(5 * 3).view(1, 5, 3)
    mask = torch.zeros(1, 5, 3)
    mask[0, 2, 1] = -1
    painted = paint_label(label, mask, 99)
    assert painted[0, 2, 1] == 99 and label[0, 2, 1] == 7 and int((painted != label).sum()) == 1
    assert torch.equal(paint_label(label, torch.zeros(1, 5, 3), 99), label)
