"""The texture that an accepted edit must have."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.edit.validation_options import Validator
from monai_diffaug.transforms.latent_validate import LatentValidate


def judge(min_texture: float = 0.002) -> LatentValidate:
    """Finds what is brighter than the middle of the window."""
    options = Validator(min_texture=min_texture, max_false_positive=9.0, min_change=0.0)
    return LatentValidate(lambda crops: (crops[:, :1] > 0).float(), 0.0, window=(0, 255), options=options)


def lesion(noise: float, soft_edge: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright square of 20 pixels on a dark image (1, 64, 64) in 0 to 255, and its mask."""
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    image = 60 + 140 * mask + noise * torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    if soft_edge:
        image[:, 20:22, 20:40] = 170
    return image.round().clamp(0, 255).to(torch.uint8), mask


@pytest.mark.parametrize("soft_edge", [False, True])
def test_a_flat_patch_is_refused_with_its_figure(soft_edge):
    verdict = judge()(*lesion(0, soft_edge))
    assert not verdict.accepted and verdict.texture == 0 and verdict.reason == "texture 0.0000 < 0.0020 of the window"


def test_a_lesion_with_noise_is_accepted_and_the_figure_is_that_of_its_noise():
    verdict = judge()(*lesion(4.0))
    assert verdict.accepted and verdict.texture == pytest.approx(4 * 2 / torch.pi**0.5 / 255, rel=0.1)  # mean |a - b| of two normal numbers


def test_by_default_texture_is_not_judged():
    verdict = judge(0.0)(*lesion(0))
    assert verdict.accepted and verdict.texture == -1


def test_a_single_pixel_has_no_texture_to_judge():
    image, mask = lesion(0)
    mask[:] = 0
    mask[0, 30, 30] = 1
    assert judge()(image, mask).texture == -1


def test_the_slices_of_a_volume_are_pooled():
    flat, mask = lesion(0)
    noisy, _ = lesion(4.0)
    volume, masks = torch.stack([flat, noisy], -1), torch.stack([mask, mask], -1)
    assert judge()(volume, masks).texture == pytest.approx(judge()(noisy, mask).texture / 2, rel=1e-4)


def test_a_small_flat_patch_is_judged_with_its_rim():
    image, mask = lesion(0)
    mask[:] = 0
    mask[0, 28:33, 28:33] = 1
    assert judge()(image, mask).texture == 0
