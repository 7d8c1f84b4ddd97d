from __future__ import annotations

import pytest
import torch

from monai_diffaug.geometry.channels import is_one_picture, merged_channels, shown, windows_of
from monai_diffaug.geometry.window import window_of

RAMP = torch.linspace(0, 1, 64).reshape(1, 8, 8)


def stacked(*tops: float) -> torch.Tensor:
    return torch.cat([top * RAMP for top in tops])


@pytest.mark.parametrize(
    ("image", "window", "expected"),
    [
        (stacked(5.0), None, True),
        (stacked(1.0, 1.0), None, False),
        (stacked(255.0, 120.0, 30.0), None, True),
        (stacked(255.0, 0.0, 0.0), None, True),
        (stacked(4000.0, 600.0, 3.0), None, False),
        (stacked(4000.0, 600.0, 3.0), (0, 4000), True),
        (stacked(255.0, 1.0, 1.0).to(torch.uint8), None, True),
        (stacked(1.0, 1.0, 1.0, 1.0), (0, 1), False),
    ],
)
def test_grey_and_colours_are_one_picture_and_other_channels_are_not(image, window, expected) -> None:
    assert is_one_picture(image, window) is expected


def test_one_picture_is_shown_in_one_window_and_channels_in_one_each() -> None:
    colours, contrasts = stacked(255.0, 120.0, 30.0), stacked(4000.0, 2.0)
    assert torch.equal(shown(colours), window_of(colours).to_model(colours))
    assert torch.allclose(shown(contrasts)[0], shown(contrasts)[1], atol=1e-5)
    assert torch.equal(shown(contrasts, (0, 8)), torch.stack([window_of(each, (0, 8)).to_model(each) for each in contrasts]))
    assert [window.high for window in windows_of(contrasts, (0, 8))] == [8.0, 8.0]


def test_merged_channels_weigh_alike_whatever_their_unit() -> None:
    merged = merged_channels(stacked(4000.0, 2.0))
    assert merged.shape == (1, 8, 8) and torch.allclose(merged[0], shown(RAMP)[0], atol=1e-5)
    assert torch.allclose(merged_channels(stacked(1.0, 1.0), (0.0, 2.0)), RAMP, atol=1e-6)
    colours = stacked(255.0, 120.0, 30.0)
    assert merged_channels(colours) is colours
