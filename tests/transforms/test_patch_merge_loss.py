from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.masks.patch_grid import grid_shape, upsampled
from monai_diffaug.transforms.patch_merge_loss import PatchMergeLoss


def test_logits_not_losses_are_merged() -> None:
    generator = torch.Generator().manual_seed(0)
    real, synthetic = torch.randn(2, 1, 24, 24, generator=generator), torch.randn(2, 1, 24, 24, generator=generator)
    target = (torch.rand(2, 1, 24, 24, generator=generator) > 0.5).float()
    loss = PatchMergeLoss(0.6)(real, synthetic, target, torch.Generator().manual_seed(7))
    cells = torch.rand((2, 6, 6), generator=torch.Generator().manual_seed(7)) < 0.6
    merged = torch.where(upsampled(cells, (24, 24)), real, synthetic)
    assert loss == DiceCELoss(sigmoid=True)(merged, target)
    assert not torch.isclose(loss, 0.6 * DiceCELoss(sigmoid=True)(real, target) + 0.4 * DiceCELoss(sigmoid=True)(synthetic, target))


def test_alpha_one_is_the_loss_of_the_real_and_alpha_zero_of_the_synthetic_images() -> None:
    real, synthetic = torch.randn(2, 3, 12, 12, 6), torch.randn(2, 3, 12, 12, 6)
    target = torch.randint(0, 3, (2, 1, 12, 12, 6))
    plain = DiceCELoss(softmax=True, to_onehot_y=True)
    assert PatchMergeLoss(1.0)(real, synthetic, target) == plain(real, target)
    assert PatchMergeLoss(0.0)(real, synthetic, target) == plain(synthetic, target)


def test_each_logit_learns_from_exactly_one_branch() -> None:
    real, synthetic = torch.randn(1, 1, 24, 24, requires_grad=True), torch.randn(1, 1, 24, 24, requires_grad=True)
    PatchMergeLoss(0.5)(real, synthetic, torch.ones(1, 1, 24, 24)).backward()
    assert real.grad is not None and synthetic.grad is not None
    assert bool(((real.grad != 0) ^ (synthetic.grad != 0)).all())


def test_a_criterion_of_the_users_is_used() -> None:
    loss = PatchMergeLoss(criterion=lambda logits, label: (logits - label).abs().mean())
    assert loss(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)) == 1


def test_wrong_input_is_refused() -> None:
    with pytest.raises(GridMismatchError, match="differ"):
        PatchMergeLoss()(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 9), torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="patch_fraction"):
        PatchMergeLoss(patch_fraction=0.0)


def test_the_grid_never_has_more_cells_than_pixels() -> None:
    assert grid_shape((384, 96, 3), 1 / 6) == (6, 6, 3) and grid_shape((10, 10), 1.0) == (1, 1)
