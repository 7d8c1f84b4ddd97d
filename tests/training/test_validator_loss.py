from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from monai_diffaug.models.validator import TINY_CONFIG, LatentSegmenter, mask_latents
from monai_diffaug.training.recipes.vae_recipe import load_vae
from monai_diffaug.training.validator_loss import fit_probe, soft_dice_and_entropy, validator_loss

SMALL = {**TINY_CONFIG, "size_px": 64, "condition_channels": [8, 16], "unet_channels": [16, 32], "condition_out_channels": 8}


def discs(n: int, seed: int) -> torch.Tensor:
    rng, (ys, xs) = np.random.RandomState(seed), np.indices((64, 64))
    masks = [np.hypot(ys - rng.randint(16, 48), xs - rng.randint(16, 48)) < rng.uniform(5, 14) for _ in range(n)]
    return torch.from_numpy(np.stack(masks)[:, None]).float()


def test_the_mask_loss_is_small_only_for_the_right_mask():
    target = torch.zeros(2, 1, 16, 16)
    target[..., 4:10, 4:10] = 1
    right, empty = target * 2 - 1, torch.full_like(target, -1.0)
    assert float(soft_dice_and_entropy(right, target)) < 0.15
    assert float(soft_dice_and_entropy(empty, target)) > 1
    assert float(soft_dice_and_entropy(empty, torch.zeros_like(target))) < 0.5


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_a_few_steps_on_one_batch_lower_the_loss(prediction_type):
    torch.manual_seed(0)
    segmenter = LatentSegmenter({**SMALL, "prediction_type": prediction_type})
    masks = torch.zeros(2, 1, 64, 64)
    masks[..., 20:44, 16:48] = 1
    images = masks.expand(-1, 3, -1, -1) * 1.0 - 0.5
    z0 = (F.avg_pool2d(masks, 4) * 2 - 1).expand(-1, 4, -1, -1)
    probe = (torch.zeros(1, 4, 3, 3), torch.zeros(1))
    probe[0][:, :, 1, 1] = 0.25
    optimizer = torch.optim.Adam(segmenter.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        loss = validator_loss(segmenter, z0, images, masks, probe, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]


def test_the_probe_reads_masks_that_it_was_not_fitted_to():
    vae = load_vae("tiny")
    weight, bias = fit_probe(vae, discs(32, seed=0))
    with torch.no_grad():
        read_out = F.conv2d(mask_latents(vae, discs(8, seed=1)), weight, bias, padding=1)
    truth = F.adaptive_avg_pool2d(discs(8, seed=1), (16, 16)) > 0.5
    assert float(((read_out > 0) == truth).float().mean()) > 0.97
