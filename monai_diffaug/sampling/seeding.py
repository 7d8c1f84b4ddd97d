"""One CPU generator per slice from one seed per sample: results do not depend on batches, threads or the global random state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["MAX_SEED", "draw_seed", "slice_generators"]

MAX_SEED = np.iinfo(np.uint32).max


def draw_seed(random_state: np.random.RandomState) -> int:
    """Draw one uint32 from a transform's ``self.R``: one draw per sample, for any data."""
    return int(random_state.randint(MAX_SEED, dtype="uint32"))


def slice_generators(seed: int, slice_indices: Sequence[int], purpose: int = 0) -> list[torch.Generator]:
    """One CPU generator per slice, seeded from (seed, purpose, slice index) only.

    Args:
        seed: the sample's seed, in [0, MAX_SEED].
        slice_indices: position of each slice along the slicing axis.
        purpose: separates independent streams of one slice (initial noise, local noise, VAE posterior).

    >>> first, second = slice_generators(7, [0, 5]), slice_generators(7, [5])
    >>> float(torch.rand(1, generator=first[1])) == float(torch.rand(1, generator=second[0]))
    True
    """
    generators = []
    for index in slice_indices:
        state = np.random.SeedSequence((seed, purpose, index)).generate_state(1, np.uint64)[0]
        generators.append(torch.Generator("cpu").manual_seed(int(state) & (2**63 - 1)))
    return generators
