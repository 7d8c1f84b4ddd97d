from __future__ import annotations

import pytest
import torch

from monai_diffaug.training.crop_sampler import CropSampler
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.encoded_ring import EncodedRing
from monai_diffaug.training.labelled_slices import load_slices


class Counter:
    """Numbers the crops in the order in which they are encoded."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, batch):
        numbers = torch.arange(self.count, self.count + len(batch.images))
        self.count += len(batch.images)
        return numbers, batch.hidden.mean((1, 2, 3))


@pytest.fixture
def sampler(datalist):
    return CropSampler(load_slices(read_datalist(datalist)), 16, seed=0)


def test_old_crops_give_way_to_new_ones_and_no_more_are_kept_than_the_capacity(sampler):
    encode = Counter()
    ring = EncodedRing(sampler, encode, first=16, capacity=16, renewal=4.0)
    for _ in range(8):
        (numbers, shares), captions = ring.batch(200)
        assert len(captions) == 200 and shares.shape == (200,)
    assert encode.count == 16 + 8 * 4
    assert set(numbers.tolist()) == set(range(32, 48))


def test_a_crop_keeps_its_caption(sampler):
    ring = EncodedRing(sampler, Counter(), first=8, renewal=0)
    (numbers, _), captions = ring.batch(100)
    assert len({(int(n), text) for n, text in zip(numbers, captions, strict=True)}) == len(set(numbers.tolist())) == 8
