from __future__ import annotations

import pytest
import torch

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.grids import check_grid, check_image


def test_an_image_of_four_channels_is_told_how_to_be_split() -> None:
    with pytest.raises(ValueError, match=r"C 1 or 3.*\(4, 32, 32\).*SplitDimd"):
        check_image(torch.zeros(4, 32, 32))


def test_one_hot_channels_on_the_right_grid_are_told_to_become_class_ids() -> None:
    with pytest.raises(GridMismatchError, match=r"label \(3, 32, 32\) has 3 channels: expected \(1, 32, 32\).*AsDiscreted\(argmax=True\)"):
        check_grid("label", torch.zeros(3, 32, 32), torch.zeros(1, 32, 32))
