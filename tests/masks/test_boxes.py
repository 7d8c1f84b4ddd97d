"""Boxes and connected components of 2-D masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.masks.boxes import box_around, connected_components, enlarged


def flat_label(height: int, width: int) -> torch.Tensor:
    label = torch.zeros(1, height, width)
    label[0, 10:20, 5:30] = 2
    return label


def test_the_box_of_a_mask_is_its_first_and_last_column_and_row() -> None:
    assert box_around(flat_label(40, 50)[0]) == (5, 10, 29, 19)
    with pytest.raises(ValueError, match="empty"):
        box_around(torch.zeros(3, 3))


def test_a_box_is_enlarged_in_pixels_of_a_1024_wide_slice_and_clipped() -> None:
    assert enlarged((10, 10, 20, 20), (8, 16, 8, 999), (512, 256)) == (8, 2, 22, 512)


@pytest.mark.parametrize("seed", range(4))
def test_connected_components_equal_those_of_scikit_image(seed: int) -> None:
    from skimage.filters import gaussian
    from skimage.measure import label

    mask = gaussian(np.random.RandomState(seed).rand(60, 80), 1.0 + seed) > 0.5
    expected = label(mask, connectivity=2)
    parts = connected_components(torch.from_numpy(mask))
    assert len(parts) == expected.max()
    assert np.array_equal(torch.stack(parts).any(0).numpy(), mask)
    for part in parts:
        (value,) = np.unique(expected[part.numpy()])
        assert np.array_equal(expected == value, part.numpy())
    areas = [int(part.sum()) for part in parts]
    assert areas == sorted(areas, reverse=True)


def test_an_empty_mask_has_no_component_and_a_long_line_has_one() -> None:
    assert connected_components(torch.zeros(4, 4)) == []
    snake = torch.ones(41, 41)
    snake[1::4, 1:] = snake[3::4, :-1] = 0
    assert len(connected_components(snake)) == 1
