from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.studies.masked_images import MaskedImage, free_places
from monai_diffaug.studies.painter import Painter, painted_lesions, through_vae


def test_the_prompt_is_all_that_differs_between_two_paintings(breast, random_inpainter):
    (place,) = free_places(breast, 1)
    painter = Painter(random_inpainter, num_inference_steps=1)
    benign, again, normal = (
        painter.paint([place], [place.prompt_for(finding)])[0].image for finding in ("benign mass", "benign mass", "normal tissue")
    )
    assert torch.equal(benign, again) and not torch.equal(benign, normal)
    assert np.array_equal(benign[0, :8], place.image[0, :8])


def test_findings_are_painted_in_turn_into_places_that_are_kept(breast, random_inpainter):
    painted, places = painted_lesions(breast, 3, Painter(random_inpainter, num_inference_steps=1))
    assert [one.finding for one in painted] == ["benign mass", "malignant mass", "benign mass"]
    for one, place in zip(painted, places, strict=True):
        assert place.is_normal and (one.image != place.image)[place.mask > 0].float().mean() > 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_the_round_trip_changes_only_the_square_and_little_in_it(channels):
    ys, xs = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    image = (110 + 40 * torch.sin(xs / 17) + 40 * torch.cos(ys / 23)).expand(channels, -1, -1).to(torch.uint8)
    mask = torch.zeros(1, 200, 200, dtype=torch.uint8)
    mask[:, 90:120, 90:120] = 1
    decoded = through_vae(MaskedImage(image, mask, "").image, mask[0])
    error = (decoded - image).abs()
    assert decoded.shape == image.shape and float(error[:, :40].max()) == 0
    assert 0 < float(error[:, 90:120, 90:120].mean()) < 6
