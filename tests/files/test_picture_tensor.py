"""Pictures as tensors on their grid."""

from pathlib import Path

import numpy as np
import pytest
import torch

from monai_diffaug.files.picture import Picture
from monai_diffaug.files.picture_tensor import array_of, model_values, tensor_on_grid


@pytest.mark.parametrize(("dtype", "model_dtype"), [("uint8", "uint8"), ("int16", "int16"), ("uint16", "float32"), ("float64", "float32")])
def test_types_that_torch_computes_with_stay(dtype: str, model_dtype: str) -> None:
    picture = Picture(Path("a.mha"), ".mha", np.arange(6).reshape(1, 2, 3).astype(dtype))
    assert model_values(picture).dtype == model_dtype and model_values(picture).ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_scaled_numbers_become_values() -> None:
    picture = Picture(Path("a.nii"), ".nii", np.array([[[1, 2]]], np.int16), slope=2.0, inter=-1.0)
    assert model_values(picture).tolist() == [[[1.0, 3.0]]]


def test_a_tensor_is_a_copy_with_affine_and_file_name() -> None:
    stored = np.zeros((1, 2, 2, 2), np.float32)
    tensor = tensor_on_grid(stored, Picture(Path("a.nii"), ".nii", stored, affine=np.diag([2.0, 2, 2, 1])))
    tensor += 1
    assert not stored.any() and tensor.affine.diagonal().tolist() == [2, 2, 2, 1] and tensor.meta["filename_or_obj"] == "a.nii"
    assert array_of(tensor).sum() == 8 and array_of(torch.ones(3, requires_grad=True)).tolist() == [1, 1, 1]
