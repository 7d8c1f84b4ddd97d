from __future__ import annotations

import warnings

import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.geometry.grids import check_grid, check_image, required


def test_the_error_of_an_image_of_four_channels_names_the_transform_that_splits_it() -> None:
    with pytest.raises(ValueError, match=r"C 1 or 3.*\(4, 32, 32\).*SplitDimd"):
        check_image(torch.zeros(4, 32, 32))


def test_the_error_of_one_hot_channels_names_the_transform_to_class_ids() -> None:
    with pytest.raises(GridMismatchError, match=r"label \(3, 32, 32\) has 3 channels: expected \(1, 32, 32\).*AsDiscreted\(argmax=True\)"):
        check_grid("label", torch.zeros(3, 32, 32), torch.zeros(1, 32, 32))


def test_the_error_of_a_missing_item_lists_the_items_and_the_advice() -> None:
    assert required({"image": 1, "mask": None}, "mask") is None
    with pytest.raises(KeyError, match="the sample has no 'mask' .it has image, label.; name the key that holds it"):
        required({"image": 1, "label": 2}, "mask")
    with pytest.raises(KeyError, match="the batch has no 7 .it has .; collate it"):
        required({}, 7, "collate it", of="batch")


def volume(affine: torch.Tensor | None = None) -> MetaTensor:
    return MetaTensor(torch.zeros(1, 8, 8, 4), affine=affine)


def flipped() -> torch.Tensor:
    return torch.diag(torch.tensor([-2.0, -2.0, 3.0, 1.0], dtype=torch.float64))


def test_a_label_at_another_world_position_is_refused() -> None:
    moved = flipped()
    moved[0, 3] = 1.2
    with pytest.raises(GridMismatchError, match=r"label and image have one shape.*1\.2 mm apart.*ResampleToMatchd"):
        check_grid("label", volume(moved), volume(flipped()))
    with pytest.raises(GridMismatchError, match="mask and image"):
        check_grid("mask", volume(flipped() @ torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))), volume(flipped()))


def test_rounded_affines_identities_and_pictures_are_accepted() -> None:
    rounded = flipped()
    rounded[:3, 3] += 0.4
    plane = MetaTensor(torch.zeros(1, 8, 8), affine=rounded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_grid("label", volume(rounded), volume(flipped()))
        check_grid("label", volume(), volume(flipped()))
        check_grid("label", volume(flipped()), volume())
        check_grid("label", torch.zeros(1, 8, 8, 4), volume(flipped()))
        check_grid("label", plane, MetaTensor(torch.zeros(1, 8, 8), affine=flipped()))


def test_affines_with_an_axis_of_length_zero_are_compared() -> None:
    flat = flipped()
    flat[0, 0] = 0
    moved = flat.clone()
    moved[0, 3] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_grid("label", volume(flat), volume(flat))
    with pytest.raises(GridMismatchError, match=r"0\.1 mm apart"):
        check_grid("label", volume(moved), volume(flat))


def test_grids_are_compared_on_the_cpu_with_any_default_device() -> None:
    label, image = volume(flipped()), volume(flipped())
    torch.set_default_device("meta")
    try:
        check_grid("label", label, image)
    finally:
        torch.set_default_device(None)
