from __future__ import annotations

import numpy as np
import torch

from monai_diffaug.sampling.seeding import MAX_SEED, draw_seed, slice_generators


def test_a_generator_depends_on_seed_and_slice_only() -> None:
    many = [torch.randn(3, generator=g) for g in slice_generators(5, [0, 1, 7])]
    alone = torch.randn(3, generator=slice_generators(5, [7])[0])
    assert torch.equal(many[2], alone)
    assert not torch.equal(many[0], many[1])


def test_another_seed_or_purpose_gives_another_stream() -> None:
    draws = [torch.randn(3, generator=slice_generators(s, [0], p)[0]) for s, p in ((1, 0), (2, 0), (1, 1))]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_draw_seed_draws_one_number() -> None:
    first, second = np.random.RandomState(3), np.random.RandomState(3)
    seeds = [draw_seed(first), draw_seed(first)]
    assert seeds == [int(second.randint(MAX_SEED, dtype="uint32")) for _ in range(2)]
