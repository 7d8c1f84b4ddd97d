"""What the validator's training draws, and that a step of it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import monai_diffaug.training.validator as recipe
from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.models.validator import TINY_CONFIG, LatentSegmenter
from monai_diffaug.training.datasets import data_root
from monai_diffaug.training.validator import (
    MIN_SIDE_PX,
    LesionCrops,
    LesionCropSampler,
    blurred,
    lesion_square,
    soft_dice_and_entropy,
    training_loss,
)

needs_data = pytest.mark.skipif(data_root() is None, reason="the training images are not here; set MONAI_DIFFAUG_DATA")
SMALL = {**TINY_CONFIG, "size_px": 64, "condition_channels": [8, 16], "unet_channels": [16, 32], "condition_out_channels": 8}


def test_the_square_is_centred_and_not_smaller_than_the_least_side():
    mask = np.zeros((256, 256), bool)
    mask[100:110, 50:90] = True
    centre, side, extent = lesion_square(mask, 2.0)
    assert centre.tolist() == [104.5, 69.5] and side == 80 and extent == 40
    mask[:] = False
    mask[5:8, 5:8] = True
    assert lesion_square(mask, 2.0)[1] == MIN_SIDE_PX


def test_blurring_keeps_the_mean_of_a_flat_image_and_lowers_the_contrast_of_a_point():
    flat, point = torch.full((1, 3, 16, 16), 0.3), torch.zeros(1, 1, 17, 17)
    point[..., 8, 8] = 1
    assert torch.allclose(blurred(flat, 1.5), flat, atol=1e-6)
    assert float(blurred(point, 1.0).max()) < 0.2 and float(blurred(point, 1.0).sum()) == pytest.approx(1, abs=1e-4)


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
    crops = LesionCrops(masks.expand(-1, 3, -1, -1) * 1.0 - 0.5, masks)
    z0 = (F.avg_pool2d(masks, 4) * 2 - 1).expand(-1, 4, -1, -1)
    probe = (torch.zeros(1, 4, 3, 3), torch.zeros(1))
    probe[0][:, :, 1, 1] = 0.25
    optimizer = torch.optim.Adam(segmenter.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        loss = training_loss(segmenter, z0, crops, probe, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]


@needs_data
def test_lesions_come_with_their_mask_and_normal_tissue_with_an_empty_one():
    sources = ("breast_ultrasound",)
    lesions = LesionCropSampler("validation", 0, sources, normal_share=0.0).draw(4)
    normal = LesionCropSampler("validation", 0, sources, normal_share=1.0).draw(4)
    assert lesions.images.shape == (4, 3, 128, 128) and lesions.masks.shape == (4, 1, 128, 128)
    assert float(lesions.images.min()) >= -1 and float(lesions.images.max()) <= 1
    assert bool((lesions.masks.sum((1, 2, 3)) > 50).all()) and not normal.masks.any()


@needs_data
def test_the_same_seed_draws_the_same_crops():
    first, second = (LesionCropSampler("validation", 3, ("breast_ultrasound",)).draw(3) for _ in range(2))
    assert torch.equal(first.images, second.images) and torch.equal(first.masks, second.masks)


@needs_data
def test_the_recipe_draws_no_crop_of_a_data_set_that_is_left_out(tmp_path, monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    class Recorded:
        def __init__(self, split, seed, sources):
            seen.append(sources)
            raise Stop

    monkeypatch.setattr(recipe, "LesionCropSampler", Recorded)
    with pytest.raises(Stop):
        recipe.train(tmp_path, tiny_folder("inpainter") / "vae", 1.0, left_out=["breast_ultrasound"])
    assert "breast_ultrasound" not in seen[0] and "spine_mri" in seen[0]
