from __future__ import annotations

import pytest

import monai_diffaug
from monai_diffaug.sampling.seeding import MAX_SEED
from monai_diffaug.transforms.seeded import SeededTransform


class Identity(SeededTransform):
    def __call__(self, data: object) -> object:
        return data


def test_the_draws_do_not_depend_on_the_probability_and_the_seed_is_a_uint32() -> None:
    never, always = (Identity(prob).set_random_state(3) for prob in (0.0, 1.0))
    for _ in range(5):
        never.randomize(), always.randomize("any data")
        assert never.seed == always.seed and 0 <= never.seed <= MAX_SEED
        assert always._do_transform and not never._do_transform
    assert never.R.rand() == always.R.rand()


@pytest.mark.parametrize("prob", [0.0, 0.25, 1.0])
def test_the_order_of_bases_keeps_the_probability(prob) -> None:
    for transform in (
        monai_diffaug.DiffusionLocalInpaintd("image", prob=prob),
        monai_diffaug.MedSAMMaskd("image", label_key="label", prob=prob),
        monai_diffaug.PlaceMaskd("image", prob=prob),
        monai_diffaug.TextPromptd("prompt", modality="ct", prob=prob),
    ):
        assert transform.prob == prob and transform.seed == 0
