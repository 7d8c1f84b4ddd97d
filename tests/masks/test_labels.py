from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from monai_diffaug.masks.labels import check_class_ids, check_label_value, check_painted_label, class_ids, paint_label, voxels_of


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


@pytest.mark.parametrize(("dtype", "value"), [(torch.bool, 2), (torch.float16, 2049), (torch.float32, 2**24 + 1), (torch.bfloat16, 257)])
def test_a_value_that_a_dtype_would_round_is_refused(dtype: torch.dtype, value: int) -> None:
    with pytest.raises(ValueError, match=f"label_value {value} does not fit"):
        check_label_value(dtype, value)
    check_label_value(dtype, 1)


@pytest.mark.parametrize("value", [-1, 257, 256])
def test_a_uint8_label_is_never_equal_to_a_value_it_cannot_hold(value: int) -> None:
    label = torch.tensor([255, 1, 0], dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"label_value {value} does not fit the label's dtype torch.uint8"):
        voxels_of(label, value)


DTYPES = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_voxels_of_a_class_are_those_with_its_id(dtype: torch.dtype) -> None:
    label = torch.tensor([0, 1, 2, 2]).to(dtype)
    assert voxels_of(label, 2).tolist() == [False, False, True, True]
    assert voxels_of(label, 7).tolist() == [False] * 4
    assert voxels_of(label, None).tolist() == [False, True, True, True]


def test_unknown_voxels_of_a_signed_label_are_no_class_above_zero() -> None:
    label = torch.tensor([-1, 0, 3], dtype=torch.int16)
    assert voxels_of(label, None).tolist() == [False, False, True] and voxels_of(label, -1).tolist() == [True, False, False]


def test_ids_above_the_precision_of_float32_are_told_apart() -> None:
    label = torch.tensor([614454277, 614454272], dtype=torch.int32)
    assert voxels_of(label, 614454277).tolist() == [True, False]


def test_floats_that_are_almost_class_ids_are_those_classes() -> None:
    label = torch.tensor([0.0, 2.9999992, 3.0009, -1.0000001, 1e-7])
    assert class_ids(label).tolist() == [0, 3, 3, -1, 0]
    assert voxels_of(label, 3).tolist() == [False, True, True, False, False]
    assert not voxels_of(label, None)[4]


@pytest.mark.parametrize("fraction", [0.5, 0.998, float("nan"), float("inf")])
def test_a_fractional_label_is_refused_with_the_number_of_voxels(fraction: float) -> None:
    label = torch.tensor([0.0, fraction, fraction, 1.0])
    for value in (None, 1):
        with pytest.raises(ValueError, match=r"2 voxels that are no whole number.*lazy=False"):
            voxels_of(label, value)


NESTED = (2, 1, 4)  # oedema, core, enhancing


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_nested_classes_are_painted_by_priority_and_organs_keep_their_value_elsewhere(dtype) -> None:
    label = torch.tensor([[[7, 7, 7, 1, 4, 2, 7]]], dtype=dtype)
    mask = torch.tensor([[[0, 2, 4, 2, 1, 4, 1]]], dtype=torch.uint8)
    assert paint_label(label, mask, NESTED).tolist() == [[[7, 2, 4, 1, 4, 4, 1]]]
    assert paint_label(label, mask, NESTED).dtype == dtype


def test_a_mask_with_a_class_that_is_not_named_is_refused() -> None:
    label = torch.zeros(1, 1, 3)
    with pytest.raises(ValueError, match="the mask has the value 3, and label_value names the classes 2, 1, 4"):
        check_painted_label(label, torch.tensor([[[0, 3, 1]]]), NESTED)
    with pytest.raises(ValueError, match="several different ones"):
        check_painted_label(label, label, (1, 1))
    with pytest.raises(ValueError, match="label_value 400 does not fit"):
        check_painted_label(label.to(torch.uint8), label, (1, 400))
    check_painted_label(label, torch.tensor([[[0, 3, 1]]]), 9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_the_picture_of_a_mask_is_refused_unless_its_value_is_meant(dtype) -> None:
    picture = torch.tensor([[[0, 255, 255]]], dtype=dtype)
    with pytest.raises(
        ValueError, match=r"0 and 255 alone.*AsDiscreted\('label', threshold=128\), or give label_value=255.*MapLabelValued"
    ):
        check_class_ids(picture, [1])
    for values in ([255], [0]):
        check_class_ids(picture, values)
    check_class_ids(torch.tensor([[[0, 1, 255]]], dtype=dtype), [1])
    check_class_ids(torch.zeros(1, 0, 3), [1])
