"""The resize by two matrices against scikit-image, whose resize MedSAM's official script calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.models.medsam_resize import cubic_matrix, resize_cubic

TOLERANCE = 1.3e-4  # grey values of 255


@pytest.mark.parametrize(("shape", "size"), [((256, 200, 3), 512), ((300, 411, 1), 256), ((64, 64, 1), 1024)])
def test_an_eight_bit_image_is_resized_as_by_scikit_image(shape: tuple[int, int, int], size: int) -> None:
    from skimage.transform import resize

    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, shape).astype(np.float64)
    expected = resize(image, (size, size), order=3, preserve_range=True, anti_aliasing=True)
    ours = resize_cubic(torch.from_numpy(image).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).double().numpy()
    assert np.abs(ours - expected).max() <= TOLERANCE


def test_scikit_image_is_not_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys, torch; from monai_diffaug.models.medsam_resize import resize_cubic; "
        "resize_cubic(torch.rand(1, 1, 9, 9), 8); assert 'skimage' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("n_in", "n_out"), [(512, 256), (512, 1024), (640, 256)])
def test_no_weight_is_a_denormal_number(n_in: int, n_out: int) -> None:
    weights = cubic_matrix(n_in, n_out).abs()
    assert weights[weights > 0].min() > 1e-13
    torch.testing.assert_close(weights.new_ones(n_in) @ cubic_matrix(n_in, n_out).T, torch.ones(n_out), atol=1e-5, rtol=0)
