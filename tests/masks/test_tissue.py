from __future__ import annotations

import numpy as np

from monai_diffaug.masks.tissue import normal_tissue


def test_tissue_is_neither_the_dark_frame_nor_a_finding_nor_its_neighbourhood() -> None:
    brightness, label = np.zeros((60, 60)), np.zeros((60, 60))
    brightness[:, 20:] = 0.5
    label[30:34, 40:44] = 2
    tissue = normal_tissue(brightness, label)
    assert not tissue[:, :15].any() and tissue[5, 30]
    assert not tissue[26:38, 42].any() and tissue[20, 42]
