"""The resize by two matrices against scikit-image, which MedSAM's official script uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.models.medsam_resize import cubic_matrix, resize_cubic

TOLERANCE = 1.3e-4  # grey values of 255


@pytest.mark.parametrize(("shape", "size"), [((256, 200, 3), 512), ((300, 411, 1), 256), ((64, 64, 1), 1024)])
def test_an_eight_bit_image_is_resized_as_in_scikit_image(shape: tuple[int, int, int], size: int) -> None:
    from skimage.transform import resize

    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, shape).astype(np.float64)
    expected = resize(image, (size, size), order=3, preserve_range=True, anti_aliasing=True)
    ours = resize_cubic(torch.from_numpy(image).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).double().numpy()
    assert np.abs(ours - expected).max() <= TOLERANCE


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 8), (2, 9), (37, 64), (64, 64), (100, 64), (333, 64)])
def test_one_axis_of_the_cubic_resize_equals_scikit_image(n_in: int, n_out: int) -> None:
    from skimage.transform import resize

    signal = np.random.RandomState(0).rand(n_in, 3)
    expected = resize(signal, (n_out, 3), order=3, preserve_range=True, anti_aliasing=True, clip=False)
    np.testing.assert_allclose(cubic_matrix(n_in, n_out).double().numpy() @ signal, expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(40, 90, 3), (200, 31, 1)])
def test_the_cubic_resize_equals_scikit_image_with_its_clipping(shape: tuple[int, ...]) -> None:
    from skimage.transform import resize

    image = (np.random.RandomState(1).rand(*shape) > 0.7) * 255.0
    expected = resize(image, (64, 64), order=3, preserve_range=True, anti_aliasing=True)
    ours = resize_cubic(torch.from_numpy(image).permute(2, 0, 1)[None], 64)[0].permute(1, 2, 0)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-3)
    assert ours.min() == 0 and ours.max() <= 255


@pytest.mark.parametrize(("n_in", "n_out"), [(512, 256), (512, 1024), (640, 256)])
def test_no_weight_is_a_denormal_number(n_in: int, n_out: int) -> None:
    weights = cubic_matrix(n_in, n_out).abs()
    assert weights[weights > 0].min() > 1e-13
    torch.testing.assert_close(weights.new_ones(n_in) @ cubic_matrix(n_in, n_out).T, torch.ones(n_out), atol=1e-5, rtol=0)
