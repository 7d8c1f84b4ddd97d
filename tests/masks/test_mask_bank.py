from __future__ import annotations

import numpy as np
import pytest

from monai_diffaug.masks.mask_bank import checked_bank, outline_of


def test_arrays_are_cut_to_the_outline_of_their_largest_piece() -> None:
    mask = np.zeros((1, 30, 30), np.uint8)
    mask[0, 5:9, 6:12] = 1
    mask[0, 20, 20] = 1
    (outline,) = checked_bank([mask])
    assert outline.shape == (4, 6) and outline.all() and outline_of(mask[0]).shape == (4, 6)


def test_all_empty_masks_are_named_up_to_twenty() -> None:
    bank = [np.zeros((4, 4)) if i % 2 else np.ones((4, 4)) for i in range(60)]
    with pytest.raises(ValueError, match=r"30 of 60 masks .* empty.*: mask 1, mask 3, .*mask 39 and 10 more"):
        checked_bank(bank)
