"""The volumes that are timed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_diffaug.studies.speed.timed_volumes import make_volume


@pytest.mark.parametrize(("empty", "touched"), [(0.0, 8), (0.5, 4), (0.75, 2)])
def test_the_mask_touches_the_share_that_was_asked_for(empty: float, touched: int) -> None:
    volume = make_volume(64, 8, empty_fraction=empty)
    assert len(volume.indices) == touched == int(volume.mask.amax((0, 1, 2)).sum())


def test_eight_bit_can_hold_the_grey_values() -> None:
    image = make_volume(32, 3).image
    assert torch.equal(image, image.to(torch.uint8).float()) and image.std() > 10


def test_nearest_and_maximum_shrink_the_mask_alike() -> None:
    for cell in (4, 8):
        masks = make_volume(64, 2, cell_px=cell).masks
        assert torch.equal(F.max_pool2d(masks, cell), F.interpolate(masks, scale_factor=1 / cell))


def test_the_lesion_has_the_diameter_that_was_asked_for() -> None:
    rows = make_volume(256, 1, lesion=0.25).mask[0, :, :, 0].any(1).sum()
    assert rows == 64
