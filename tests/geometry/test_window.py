from __future__ import annotations

import pytest
import torch

from monai_diffaug.geometry.window import Window, warn_if_too_wide, window_of


def test_a_window_maps_its_ends_to_minus_one_and_one_and_back() -> None:
    window = Window(-160, 240)
    values = torch.tensor([-160.0, 40.0, 240.0])
    assert torch.allclose(window.to_model(values), torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.allclose(window.to_image(window.to_model(values)), values)


def test_values_outside_the_window_are_clipped() -> None:
    assert Window(0, 1).to_model(torch.tensor([-5, 7])).tolist() == [-1, 1]


def test_the_default_window_is_the_percentiles_of_the_image() -> None:
    window = window_of(torch.arange(1001, dtype=torch.int16))
    assert (window.low, window.high) == pytest.approx((5, 995), abs=1)


def test_the_window_of_a_constant_image_is_around_its_value() -> None:
    window = window_of(torch.full((1, 8, 8), 7.0))
    assert (window.low, window.high) == (6.5, 7.5)


def test_percentiles_of_a_large_volume_do_not_exceed_torchs_limit() -> None:
    assert window_of(torch.linspace(0, 1, 20_000_000)).high == pytest.approx(0.995, abs=1e-3)


def test_a_window_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        Window(3, 3)


def test_percentiles_of_a_large_volume_use_all_slices() -> None:
    volume = torch.rand(1, 128, 128, 64) * 100
    volume[..., ::4] = -1024  # every fourth voxel of the volume, and all of them in the same sixteen slices
    window = window_of(volume, prompt="MRI of brain")
    assert window.low == -1024 and window.high == pytest.approx(99.3, abs=0.3)


def test_beyond_is_the_signed_distance_from_the_window() -> None:
    values = torch.tensor([-1000.0, -160.0, 40.0, 240.0, 1000.0])
    assert Window(-160, 240).beyond(values).tolist() == [-840, 0, 0, 0, 760]


@pytest.mark.parametrize("ends", [(-10.0, float("inf")), (float("-inf"), 10.0), (float("nan"), 1.0)])
def test_a_window_without_an_end_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="finite low < high"):
        Window(*ends)


@pytest.mark.parametrize(
    ("image", "warns"), [(torch.rand(1, 8, 8), True), (100 * torch.rand(1, 8, 8), False), (torch.zeros(1, 8, 8), False)]
)
def test_an_image_of_another_unit_than_its_window_is_told(image: torch.Tensor, warns: bool, recwarn: pytest.WarningsRecorder) -> None:
    warn_if_too_wide(image, Window(0, 255))
    assert [str(each.message)[:40] for each in recwarn] == ["an image spans less than 2% of window=(0"] * warns
    warn_if_too_wide((image * 2).to(torch.uint8), Window(0, 255))
    assert len(recwarn) == warns
