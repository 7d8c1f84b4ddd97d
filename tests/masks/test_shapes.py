from __future__ import annotations

import numpy as np

from monai_diffaug.masks.shapes import borrow_shape, elastic_ellipse, place, random_blob


def test_a_blob_has_one_component_inside_its_box() -> None:
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


def test_a_borrowed_shape_is_scaled() -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:30, 10:20] = True
    assert borrow_shape(np.random.RandomState(0), mask, 0.5).shape == (10, 5)


def test_a_borrowed_shape_is_mirrored_along_both_axes() -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:30, 10:14] = True
    mask[26:30, 10:22] = True  # an L: its empty corner shows the orientation
    corners = {
        tuple(bool(shape[y, x]) for y in (0, -1) for x in (0, -1))
        for shape in (borrow_shape(np.random.RandomState(seed), mask, 1.0) for seed in range(40))
    }
    assert len(corners) == 4 and all(sum(corner) == 3 for corner in corners)


def test_an_elastic_ellipse_has_one_component_and_the_length_of_its_side_and_is_deformed() -> None:
    from scipy.ndimage import label

    shapes = [elastic_ellipse(np.random.RandomState(seed), 60) for seed in range(12)]
    misfits = []
    for shape in shapes:
        assert label(shape)[1] == 1 and abs(max(shape.shape) - 60) <= 1 and 0.3 < shape.mean() < 0.95
        ys, xs = np.nonzero(shape)
        axes = np.linalg.eigvalsh(np.cov(np.stack([ys, xs])))
        moved = np.stack([ys - ys.mean(), xs - xs.mean()])
        level = np.einsum("in,ij,jn->n", moved, np.linalg.inv(np.cov(moved)), moved)
        misfits.append(float((level > 4.1).mean()))  # an ellipse is within 4 of its second moments
        assert axes[0] > 20
    assert np.median(misfits) > 0.01
    assert len({shape.tobytes() for shape in shapes}) == len(shapes)
    assert np.array_equal(shapes[3], elastic_ellipse(np.random.RandomState(3), 60))


def test_tiny_elastic_ellipses_are_not_empty() -> None:
    assert all(elastic_ellipse(np.random.RandomState(seed), 4).any() for seed in range(20))


def test_a_shape_as_large_as_the_slice_fits() -> None:
    rng, everywhere = np.random.RandomState(0), np.ones((30, 40), bool)
    for size in ((30, 40), (30, 12), (10, 40)):
        mask = place(rng, np.ones(size, bool), everywhere)
        assert mask is not None and mask.sum() == size[0] * size[1]
    assert place(rng, np.ones((31, 12), bool), everywhere) is None
