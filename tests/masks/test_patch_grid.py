"""The random grid of patch merging: number of patches, their share and their pixels."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.masks.patch_grid import ALPHA, PATCH_FRACTION, bernoulli, check_merge, grid_shape, upsampled


@pytest.mark.parametrize(
    ("spatial", "fraction", "shape"),
    [((384, 384), PATCH_FRACTION, (6, 6)), ((100, 7), 0.1, (10, 7)), ((50, 50, 4), 0.9, (1, 1, 1)), ((64, 32, 16), 0.25, (4, 4, 4))],
)
def test_the_grid_has_patches_of_a_fraction_of_each_axis_and_at_most_one_per_pixel(
    spatial: tuple[int, ...], fraction: float, shape: tuple[int, ...]
) -> None:
    assert grid_shape(spatial, fraction) == shape


def test_each_cell_covers_its_patch_in_2d_and_3d() -> None:
    cells = torch.tensor([[[True, False], [False, True]]])
    mask = upsampled(cells, (6, 4))
    assert mask.shape == (1, 1, 6, 4) and mask.dtype == torch.bool
    assert torch.equal(mask[0, 0], cells[0].repeat_interleave(3, 0).repeat_interleave(2, 1))
    volume = upsampled(cells[..., None], (2, 2, 5))
    assert torch.equal(volume[0, 0], cells[0][..., None].expand(2, 2, 5))


def test_the_share_of_true_cells_is_alpha_and_follows_from_the_generator() -> None:
    cells = bernoulli((100, 100), ALPHA, torch.Generator().manual_seed(0))
    assert abs(float(cells.float().mean()) - ALPHA) < 0.02
    assert torch.equal(cells, bernoulli((100, 100), ALPHA, torch.Generator().manual_seed(0)))
    assert not bernoulli((9,), 0.0).any() and bernoulli((9,), 1.0).all()


@pytest.mark.parametrize(
    ("alpha", "fraction", "message"), [(-0.1, 0.5, "alpha"), (1.1, 0.5, "alpha"), (0.5, 0.0, "patch"), (0.5, 1.5, "patch")]
)
def test_numbers_out_of_range_are_refused(alpha: float, fraction: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_merge(alpha, fraction)
    check_merge(0.0, 1.0)
