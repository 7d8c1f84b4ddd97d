from __future__ import annotations

import numpy as np

from monai_diffaug.masks.free_place import free_place

SHAPE = np.ones((2, 4, 6), bool)


def test_a_place_is_free_allowed_and_repeats_with_the_seed() -> None:
    free = np.ones((6, 30, 30), bool)
    free[:, :15] = False
    allowed = free.copy()
    allowed[:, :, 20:] = False
    starts = set()
    for seed in range(20):
        place = free_place(np.random.RandomState(seed), SHAPE, allowed, free, least_share=0.9)
        assert place is not None
        box = tuple(slice(first, first + length) for first, length in zip(place, SHAPE.shape, strict=True))
        assert free[box].all() and allowed[box].mean() >= 0.9
        assert place == free_place(np.random.RandomState(seed), SHAPE, allowed, free, least_share=0.9)
        starts.add(place)
    assert len(starts) > 15


def test_a_likelihood_draws_the_middle() -> None:
    free = np.ones((6, 30, 30), bool)
    likelihood = np.zeros(free.shape)
    likelihood[3, 10, 12] = 1
    assert free_place(np.random.RandomState(0), SHAPE, free, free, likelihood) == (2, 8, 9)
    likelihood[3, 10, 12], likelihood[3, 0, 0] = 0, 1  # there the shape would leave the image
    assert free_place(np.random.RandomState(0), SHAPE, free, free, likelihood) is None


def test_no_place_is_none_and_draws_as_many_numbers() -> None:
    states = []
    for allowed in (np.ones((6, 30, 30), bool), np.zeros((6, 30, 30), bool), np.ones((1, 30, 30), bool)):
        rng = np.random.RandomState(0)
        place = free_place(rng, SHAPE, allowed, allowed)
        assert (place is None) == (not allowed.any() or len(allowed) == 1)
        states.append(rng.randint(2**31))
    assert len(set(states)) == 1
