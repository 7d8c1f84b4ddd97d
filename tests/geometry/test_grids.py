from __future__ import annotations

import warnings

import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.geometry.grids import check_grid, check_image, required


def test_an_image_of_four_channels_is_told_how_to_be_split() -> None:
    with pytest.raises(ValueError, match=r"C 1 or 3.*\(4, 32, 32\).*SplitDimd"):
        check_image(torch.zeros(4, 32, 32))


def test_one_hot_channels_on_the_right_grid_are_told_to_become_class_ids() -> None:
    with pytest.raises(GridMismatchError, match=r"label \(3, 32, 32\) has 3 channels: expected \(1, 32, 32\).*AsDiscreted\(argmax=True\)"):
        check_grid("label", torch.zeros(3, 32, 32), torch.zeros(1, 32, 32))


def test_a_missing_item_is_named_with_those_that_are_there_and_what_to_do() -> None:
    assert required({"image": 1, "mask": None}, "mask") is None
    with pytest.raises(KeyError, match="the sample has no 'mask' .it has image, label.; name the key that holds it"):
        required({"image": 1, "label": 2}, "mask")
    with pytest.raises(KeyError, match="the batch has no 7 .it has .; collate it"):
        required({}, 7, "collate it", of="batch")


def volume(affine: torch.Tensor | None = None) -> MetaTensor:
    return MetaTensor(torch.zeros(1, 8, 8, 4), affine=affine)


def turned() -> torch.Tensor:
    return torch.diag(torch.tensor([-2.0, -2.0, 3.0, 1.0], dtype=torch.float64))


def test_a_label_at_another_place_of_the_world_is_warned_of() -> None:
    moved = turned()
    moved[0, 3] = 1.2
    with pytest.warns(UserWarning, match=r"label and image have one shape.*1\.2 mm apart.*ResampleToMatchd"):
        check_grid("label", volume(moved), volume(turned()))
    with pytest.warns(UserWarning, match="mask and image"):
        check_grid("mask", volume(turned() @ torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))), volume(turned()))


def test_rounded_affines_and_identities_that_say_nothing_are_no_reason_to_warn() -> None:
    rounded = turned()
    rounded[:3, 3] += 0.4
    plane = MetaTensor(torch.zeros(1, 8, 8), affine=rounded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_grid("label", volume(rounded), volume(turned()))
        check_grid("label", volume(), volume(turned()))
        check_grid("label", volume(turned()), volume())
        check_grid("label", torch.zeros(1, 8, 8, 4), volume(turned()))
        check_grid("label", plane, MetaTensor(torch.zeros(1, 8, 8), affine=turned()))


def test_an_axis_without_a_length_is_compared_too() -> None:
    flat = turned()
    flat[0, 0] = 0
    moved = flat.clone()
    moved[0, 3] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_grid("label", volume(flat), volume(flat))
    with pytest.warns(UserWarning, match=r"0\.1 mm apart"):
        check_grid("label", volume(moved), volume(flat))


def test_grids_are_compared_on_the_cpu_whatever_the_default_device() -> None:
    label, image = volume(turned()), volume(turned())
    torch.set_default_device("meta")
    try:
        check_grid("label", label, image)
    finally:
        torch.set_default_device(None)
