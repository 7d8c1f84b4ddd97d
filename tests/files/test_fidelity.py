from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from monai_diffaug.files.fidelity import change_outside, local_ssim


@pytest.fixture
def image() -> np.ndarray:
    return np.random.RandomState(0).normal(100, 20, (1, 48, 40)).astype(np.float32)


@pytest.fixture
def region() -> np.ndarray:
    mask = np.zeros((1, 48, 40), np.uint8)
    mask[0, 20:30, 12:25] = 1
    return mask


def test_an_unchanged_image_has_local_ssim_one(image, region):
    assert local_ssim(image, image.copy(), region) == pytest.approx(1.0, abs=1e-5)


def test_local_ssim_is_the_mean_of_scikit_images_ssim_map_over_the_region(image, region):
    result = image + np.random.RandomState(1).normal(0, 15, image.shape).astype(np.float32)
    low, high = image.min(), image.max()
    _, full = structural_similarity(
        (image[0] - low) / (high - low),
        (result[0] - low) / (high - low),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        truncate=3.4,
        full=True,
    )
    assert local_ssim(image, result, region) == pytest.approx(full[region[0] > 0].mean(), abs=2e-4)


def test_local_ssim_does_not_depend_on_the_unit(image, region):
    result = image.copy()
    result[0, 22:28, 14:20] += 30
    in_hu = local_ssim(image * 10 - 1024, result * 10 - 1024, region)
    assert in_hu == pytest.approx(local_ssim(image, result, region), abs=1e-3)


def test_a_change_far_from_the_region_has_no_effect(image, region):
    result = image.copy()
    result[0, :8, 32:] = 0
    assert local_ssim(image, result, region) == pytest.approx(1.0, abs=1e-5)


def test_local_ssim_of_a_colour_volume_falls_with_a_change():
    volume = np.random.RandomState(0).rand(3, 16, 15, 14).astype(np.float32)
    region = np.zeros((16, 15, 14), bool)
    region[4:9, 5:9, 0:3] = True
    changed = volume.copy()
    changed[:, region] = np.random.RandomState(1).rand(3, region.sum())
    assert local_ssim(volume, volume, region) == pytest.approx(1, abs=1e-5)
    assert local_ssim(volume, changed, region) < 0.8


def test_an_empty_region_or_another_grid_is_refused(image, region):
    with pytest.raises(ValueError, match="empty"):
        local_ssim(image, image, np.zeros_like(region))
    with pytest.raises(ValueError, match="not on the grid"):
        local_ssim(image, image, region[:, :-1])
    with pytest.raises(ValueError, match="constant"):
        local_ssim(np.zeros_like(image), image, region)


def test_only_voxels_outside_the_soft_mask_are_counted(image, region):
    result = image.copy()
    result[0, 20:30, 12:25] += 1
    assert change_outside(image, result, region) == 0
    result[0, 0, 0:3] += 1
    assert change_outside(image, result, region) == 3
