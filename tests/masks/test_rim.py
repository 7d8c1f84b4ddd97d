from __future__ import annotations

import numpy as np

from monai_diffaug.masks.rim import rim_of, rim_statistics


def test_the_rim_is_a_quarter_of_the_longer_side_wide_and_in_the_slices_of_the_mask() -> None:
    mask = np.zeros((3, 60, 60), bool)
    mask[1, 20:40, 25:35] = True
    rim = rim_of(mask)
    assert not rim[[0, 2]].any() and not (rim & mask).any()
    assert np.flatnonzero(rim[1, 30]).tolist() == [*range(19, 24), *range(36, 41)]
    assert not rim_of(mask & False).any()


def test_statistics_are_those_of_the_rim_alone() -> None:
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 15:25, 15:25] = True
    pixels = np.where(mask, 9, 50)[None].repeat(3, 0)
    pixels[1] += 10
    assert rim_statistics(pixels, rim_of(mask)) == ((50, 0), (60, 0), (50, 0))
