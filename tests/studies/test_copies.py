from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.studies.copies import DISGUISES, copies
from monai_diffaug.studies.masked_images import MaskedImage


def lesion() -> MaskedImage:
    image = torch.full((1, 64, 64), 100, dtype=torch.uint8)
    image[:, 20:40, 24:36] = 200
    image[:, 20:30, 24:30] = 50
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 20:40, 24:36] = 1
    return MaskedImage(image, mask, "benign mass", 3, 7)


BEHIND = [torch.full((1, 64, 64), 10, dtype=torch.uint8)]


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_copy_lies_in_its_mask_and_the_rest_is_the_background(disguise):
    (pasted,) = copies([lesion()], BEHIND, disguise)
    mask = pasted.mask[0] > 0
    far = torch.nn.functional.max_pool2d(pasted.mask.float(), 31, 1, 15)[0] == 0
    assert (pasted.group, pasted.index, pasted.mask.dtype) == (3, 7, torch.uint8) and pasted.image.shape == (1, 64, 64)
    assert mask.any() and bool((pasted.image[0][far] == 10).all()) and float(pasted.image[0][mask].float().mean()) > 60


def test_each_disguise_does_what_its_name_says():
    def copy(disguise):
        pasted = copies([lesion()], BEHIND, disguise)[0]
        return pasted.image[0].float(), pasted.mask[0] > 0

    image, mask = copy("exact")
    assert float(image[35, 30]) == 200 and float(image[25, 26]) == 50
    assert torch.equal(copy("mirrored")[1], mask.flip(-1)) and float(copy("mirrored")[0][25, 63 - 26]) == 50
    assert float(copy("grey values x 0.6 + 30")[0][35, 30]) == pytest.approx(150)
    assert copy("size x 0.7")[1].sum() / mask.sum() == pytest.approx(0.49, abs=0.08)
    assert copy("size x 1.3")[1].sum() / mask.sum() == pytest.approx(1.69, abs=0.15)
    assert copy("mask wider by 5 %")[1].sum() == 22 * 14
    rows = torch.nonzero(copy("mask moved by 10 %")[1])[:, 0]
    assert {int(rows.min()), int(rows.max())} in ({18, 37}, {22, 41})
    rough = [float((copy(f"noise of {n} grey values")[0] - image)[mask].std()) for n in (10, 25)]
    assert rough[0] == pytest.approx(10, abs=2) and 18 < rough[1] < 27
    ys, xs = np.nonzero(copy("turned by 10 degrees")[1].numpy())
    assert abs(np.polyfit(ys, xs, 1)[0]) == pytest.approx(0.11, abs=0.03)  # of a rectangle of 12 x 20 turned by 10 degrees


def test_the_same_seed_makes_the_same_copies():
    first, again, other = (copies([lesion()], BEHIND, "noise of 10 grey values", seed=seed)[0].image for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
