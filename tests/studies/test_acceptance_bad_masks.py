from __future__ import annotations

import numpy as np
import pytest

from monai_diffaug.studies.acceptance import BAD_MASKS, elsewhere, grown, shifted, shrunk


@pytest.fixture
def disc() -> np.ndarray:
    ys, xs = np.indices((96, 96))
    return np.hypot(ys - 44, xs - 50) < 11


def draw(spoil, mask, seed=0, tissue=None):
    return spoil(np.random.RandomState(seed), mask, ~mask if tissue is None else tissue)


def test_a_shifted_mask_touches_its_old_place_and_does_not_overlap_it(disc):
    for seed in range(8):
        moved = draw(shifted, disc, seed)
        assert moved.sum() == disc.sum() and not (moved & disc).any()
        (dy, dx) = np.argwhere(moved).mean(0) - np.argwhere(disc).mean(0)
        assert sorted((abs(dy), abs(dx))) == [0, 21]
    assert len({draw(shifted, disc, seed).tobytes() for seed in range(20)}) == 4


def test_a_mask_is_not_shifted_out_of_the_image(disc):
    corner = np.zeros((40, 40), bool)
    corner[:15, :15] = True
    for seed in range(8):
        assert draw(shifted, corner, seed).sum() == corner.sum()
    assert draw(shifted, np.ones((20, 20), bool)) is None


def test_a_mask_elsewhere_lies_on_tissue(disc):
    right = np.zeros_like(disc)
    right[:, 64:] = True
    moved = draw(elsewhere, disc, tissue=right)
    assert (moved & right).sum() >= 0.95 * moved.sum() > 0.8 * disc.sum()
    assert draw(elsewhere, disc, tissue=np.zeros_like(disc)) is None


def test_wrong_sizes_have_twice_and_half_the_area(disc):
    wide, small = draw(grown, disc), draw(shrunk, disc)
    assert 2 <= wide.sum() / disc.sum() < 2.6 and (wide | disc).sum() == wide.sum()
    assert 0.4 < small.sum() / disc.sum() < 0.65 and (small & ~disc).sum() == 0


def test_no_bad_mask_passes_for_the_right_one(disc):
    for spoil in BAD_MASKS.values():
        bad = draw(spoil, disc)
        assert 2 * (bad & disc).sum() / (bad.sum() + disc.sum()) < 0.77
