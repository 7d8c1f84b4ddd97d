from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_diffaug.geometry.slices import PLANES, from_slices, hit_along, pixel_mm, slab_of, slice_plane, to_slices, touched

ORIENTATIONS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def stored(ras: torch.Tensor, order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[torch.Tensor, np.ndarray]:
    """The same anatomy (1, R, A, S) stored with voxel axis k along world axis order[k], with its affine."""
    volume = ras.permute(0, *(1 + axis for axis in order)).flip([1 + k for k in range(3) if signs[k] < 0])
    affine = np.eye(4)
    affine[:3, :3] = 0
    for k, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, k] = sign * (k + 1.0)
    return volume, affine


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ORIENTATIONS),
    st.sampled_from(sorted(PLANES)),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.floats(-0.2, 0.2)] * 3),
)
def test_from_slices_inverts_to_slices_for_any_orientation_and_obliqueness(orientation, plane, shape, tilt) -> None:
    volume = torch.rand(2, *shape)
    _, affine = stored(volume, *orientation)
    affine[:3, 0] += np.array(tilt) * 0.5
    cut = slice_plane(affine, plane)
    assert torch.equal(from_slices(to_slices(volume, cut), cut), volume)


@pytest.mark.parametrize("plane", sorted(PLANES))
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_slices_do_not_depend_on_the_stored_orientation(plane, orientation) -> None:
    ras = torch.rand(1, 4, 5, 6)
    volume, affine = stored(ras, *orientation)
    expected = to_slices(ras, slice_plane(np.eye(4), plane))
    assert torch.equal(to_slices(volume, slice_plane(affine, plane)), expected)


def test_axial_slices_are_in_radiological_view_from_inferior_to_superior() -> None:
    ras = torch.zeros(1, 3, 4, 5)
    ras[0, 2, 3, 1] = 1  # right, anterior, second slice from below
    slices = to_slices(ras, slice_plane(None, "axial"))
    assert slices.shape == (5, 1, 4, 3)
    assert slices[1, 0, 0, 0] == 1


def test_a_2d_image_is_one_unchanged_slice() -> None:
    image = torch.rand(3, 4, 5)
    assert slice_plane(None, "axial", 2) is None
    assert torch.equal(to_slices(image, None)[0], image)


def test_an_unknown_plane_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="axial, coronal, sagittal, got 'oblique'"):
        slice_plane(None, "oblique")


def test_touched_returns_the_indices_of_slices_with_a_mask() -> None:
    mask = torch.zeros(4, 1, 3, 3)
    mask[1, 0, 2, 2] = 1
    mask[3, 0, 0, 0] = 255
    assert touched(mask) == [1, 3]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, -1)])
def test_a_slab_is_a_view_of_the_masked_slices_with_their_position(plane: str, flips: tuple[int, int, int]) -> None:
    volume = torch.arange(6 * 7 * 8).view(1, 6, 7, 8)
    mask = torch.zeros(1, 6, 7, 8)
    mask[0, 1:3, 2:5, 3:7] = -1
    cut = slice_plane(np.diag([*flips, 1]), plane)
    slab = slab_of(mask, cut)
    positions = touched(to_slices(mask, cut))
    assert [slab.first + row for row in range(slab.length)] == positions
    assert torch.equal(to_slices(slab.of(volume), cut), to_slices(volume, cut)[positions])
    assert slab.of(volume).untyped_storage().data_ptr() == volume.untyped_storage().data_ptr()


def test_the_slab_of_an_empty_mask_is_empty_and_that_of_a_picture_is_the_picture() -> None:
    plane, picture = slice_plane(None, "axial"), torch.rand(1, 5, 6)
    assert slab_of(torch.zeros(1, 4, 5, 6), plane).length == 0 == slab_of(torch.zeros(1, 5, 6), None).length
    assert slab_of(picture, None).length == 1 and slab_of(picture, None).of(picture) is picture


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.bfloat16, torch.int64])
def test_hit_along_is_true_at_positions_with_a_non_zero_voxel(dtype: torch.dtype) -> None:
    mask = torch.zeros(1, 3, 4, 5)
    mask[0, 1, 3, 2] = -1 if dtype.is_signed else 1
    hits = [hit_along(mask.to(dtype), axis).nonzero().flatten().tolist() for axis in (1, 2, 3)]
    assert hits == [[1], [3], [2]]


def test_a_picture_whose_affine_has_an_empty_axis_has_pixels_of_one_mm() -> None:
    assert pixel_mm(np.diag([0.0, 0.0, 0.0, 1.0]), None) == 1.0
    assert pixel_mm(np.diag([2.0, 8.0, 1.0, 1.0]), None) == pytest.approx(4.0)
