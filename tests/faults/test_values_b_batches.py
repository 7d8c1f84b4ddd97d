"""Faults of letter B, batches: each process draws its own seeds, and affines that do not belong to the images are refused."""

import pytest
import torch
from monai.data import MetaTensor, list_data_collate

from monai_diffaug import BatchLocalInpaint, DiffusionLocalInpaintd
from monai_diffaug.sampling.seeding import rank_seed


def draws(monkeypatch, rank: int | None, world: int = 1) -> list[tuple[bool, int]]:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        if rank is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))
    edit = BatchLocalInpaint(DiffusionLocalInpaintd("image"), seed=0)
    edit.randomize(3)
    return edit.draws


def test_each_rank_draws_its_own_seeds_and_one_process_those_of_the_seed(monkeypatch) -> None:
    alone = draws(monkeypatch, None)
    assert draws(monkeypatch, 0, 1) == alone
    of_ranks = [draws(monkeypatch, rank, 4) for rank in range(4)]
    assert draws(monkeypatch, 2, 4) == of_ranks[2]
    assert len({seed for each in (alone, *of_ranks) for _, seed in each}) == 15
    assert len({rank_seed(seed) for seed in (0, 1, 2**32 - 1)}) == 3


def images(count: int) -> MetaTensor:
    items = [{"image": MetaTensor(torch.zeros(1, 8, 8), affine=torch.eye(4) * (k + 1))} for k in range(count)]
    return list_data_collate(items)["image"]


@pytest.mark.parametrize(
    ("batch", "counts"),
    [
        (torch.cat([images(2), images(2)]), "4 images has 2 affines"),
        (images(3)[torch.tensor([False, True, True])], "2 images has 3 affines"),
    ],
)
def test_a_batch_with_the_affines_of_other_images_is_refused(batch, counts) -> None:
    sample = {"image": batch, "mask": torch.zeros(len(batch), 1, 8, 8), "prompt": ["CT of liver, cyst"] * len(batch)}
    with pytest.raises(ValueError, match=counts):
        BatchLocalInpaint(DiffusionLocalInpaintd("image"), seed=0)(sample)
