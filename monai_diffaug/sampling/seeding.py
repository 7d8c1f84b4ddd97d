"""One CPU generator per slice from one seed per sample: results do not depend on batches, threads or the global random state."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["MAX_SEED", "draw_seed", "rank_seed", "slice_generators"]

MAX_SEED = np.iinfo(np.uint32).max


def draw_seed(random_state: np.random.RandomState) -> int:
    """Draw one uint32 from a transform's ``self.R``: one draw per sample, for any data."""
    return int(random_state.randint(MAX_SEED, dtype="uint32"))


def rank_seed(seed: int) -> int:
    """The seed of this process: in a run of several (``torchrun``) each gets its own from (seed, rank, world); alone it is ``seed``.

    Rank and world are those of ``torch.distributed``, before it is initialised those of ``RANK`` and ``WORLD_SIZE``.

    Args:
        seed: in [0, MAX_SEED], the same in all processes.

    >>> rank_seed(7) == 7 or "WORLD_SIZE" in os.environ
    True
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
    else:
        rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if world == 1:
        return seed
    return int(np.random.SeedSequence((seed, rank, world)).generate_state(1, np.uint32)[0])


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
