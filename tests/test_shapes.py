from __future__ import annotations

import numpy as np

from monai_diffaug.shapes import borrow_shape, place, random_blob


def test_a_blob_is_one_piece_inside_its_box() -> None:
    from scipy.ndimage import label

    for seed in range(10):
        blob = random_blob(np.random.RandomState(seed), 60)
        assert label(blob)[1] == 1 and 0.1 < blob.mean() < 0.9


def test_a_shape_is_placed_on_tissue_or_not_at_all() -> None:
    tissue = np.zeros((100, 100), bool)
    tissue[60:95, 10:60] = True
    shape = np.ones((20, 20), bool)
    mask = place(np.random.RandomState(0), shape, tissue, tries=500)
    assert mask is not None and mask.sum() == 400 and (mask & tissue).sum() >= 380
    assert place(np.random.RandomState(0), np.ones((40, 60), bool), tissue) is None


def test_a_borrowed_outline_is_scaled() -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:30, 10:20] = True
    assert borrow_shape(np.random.RandomState(0), mask, 0.5).shape == (10, 5)
