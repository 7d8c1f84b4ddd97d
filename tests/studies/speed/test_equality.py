"""Comparison of two arms before they are timed."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.studies.speed.equality import compare
from monai_diffaug.studies.speed.timed_edits import Volume, make_volume


@pytest.fixture
def volume() -> Volume:
    return make_volume(32, 4)


def repainted(volume: Volume, by: float = 10.0) -> torch.Tensor:
    return volume.slices + by * volume.masks


def test_equal_edits_pass(volume: Volume) -> None:
    gate = compare(repainted(volume), repainted(volume), volume)
    assert gate.passed and gate.changed_inside == 1 and gate.as_dict()["passed"] is True


def test_a_difference_inside_the_mask_fails(volume: Volume) -> None:
    gate = compare(repainted(volume), repainted(volume, 10.01), volume)
    assert not gate.passed and gate.largest_difference == pytest.approx(0.01 / 127.5, rel=0.01)


def test_one_changed_voxel_outside_fails(volume: Volume) -> None:
    edited = repainted(volume)
    edited[0, 0, 0, 0] += 1e-5
    edited[1, 0, 0, 0] += 1
    gate = compare(edited, edited, volume)
    assert not gate.passed and gate.changed_outside >= 1


def test_two_arms_that_do_not_edit_fail(volume: Volume) -> None:
    assert not compare(volume.slices, volume.slices, volume).passed


def test_nan_in_both_arms_fails() -> None:
    nan = torch.full((1, 1, 32, 32), float("nan"))
    assert not compare(nan, nan, make_volume(32, 1)).passed
