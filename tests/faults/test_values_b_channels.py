"""Three channels that are no colours are refused, in place of one window that erases the narrow one."""

import pytest
import torch

from monai_diffaug import DiffusionLocalInpaintd


def sample(*tops):
    ramp = torch.linspace(0, 1, 64 * 64).reshape(64, 64)
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 20:44, 20:44] = 1
    return {"image": torch.stack([top * ramp for top in tops]), "mask": mask, "prompt": "MRI of brain, glioma"}


def edit(**options):
    return DiffusionLocalInpaintd("image", num_inference_steps=1, **options).set_random_state(0)


def test_modalities_stacked_as_channels_are_refused_with_their_ranges():
    with pytest.raises(ValueError, match="4000, 600, 3, so they are no colours; use SplitDimd"):
        edit()(sample(4000.0, 600.0, 3.0))


@pytest.mark.parametrize("tops", [(255.0, 120.0, 30.0), (1.0, 1.0, 0.0)])
def test_a_colour_picture_is_repainted(tops):
    assert edit()(sample(*tops))["image_diffaug"]["applied"]


def test_a_window_that_the_user_gives_holds_for_all_channels():
    assert edit(window=(0, 4000))(sample(4000.0, 600.0, 3.0))["image_diffaug"]["applied"]
