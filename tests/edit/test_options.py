from __future__ import annotations

import pytest

from monai_diffaug.edit.options import InpaintOptions, Noise, Region, SoftEdge


def test_an_edge_is_hard_at_a_width_of_zero_in_the_unit_that_counts() -> None:
    assert SoftEdge(width_px_at_512=0).hard and SoftEdge(width_mm=0.0).hard
    assert not SoftEdge(width_px_at_512=0, width_mm=1.0).hard


def test_the_width_of_an_edge_is_in_pixels_at_512_or_in_mm() -> None:
    assert SoftEdge(width_px_at_512=4.0).width_px(256, pixel_mm=0.5) == 2.0
    assert SoftEdge(width_mm=4.0).width_px(256, pixel_mm=0.5) == 8.0
    assert SoftEdge(width_px_at_512=4.0).width_px(256, pixel_mm=1.0) == 2.0
    assert SoftEdge(width_px_at_512=4.0).width_px(256, pixel_mm=4.0) == 0.5  # 2 mm, as on a grid of 1 mm


@pytest.mark.parametrize("edge", [SoftEdge(width_mm=3.0), SoftEdge(width_px_at_512=30.0)])
def test_the_least_side_holds_the_mask_and_four_standard_deviations_on_each_side(edge: SoftEdge) -> None:
    side = edge.least_side(20, pixel_mm=0.5)
    assert side == pytest.approx(20 + 8 * edge.width_px(round(side), pixel_mm=0.5), abs=0.3)


def test_an_edge_wider_than_any_square_needs_a_large_one() -> None:
    assert SoftEdge(width_px_at_512=500.0).least_side(20, pixel_mm=0.5) == pytest.approx(2000)


def test_an_edge_that_does_not_grow_needs_no_larger_square() -> None:
    assert SoftEdge(width_mm=9.0, mode="inner").least_side(20, pixel_mm=0.5) == 20
    assert SoftEdge(width_px_at_512=0).least_side(20, pixel_mm=0.5) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample": "nearest"}, "resample must be one of bilinear, bicubic, got 'nearest'"),
        ({"least_context": 0.9}, "least_context must be None or >= 1, got 0.9"),
    ],
)
def test_a_region_out_of_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Region(**options)


def test_the_region_keeps_texture_and_the_noise_is_left_to_the_model() -> None:
    assert (Region().resample, Region().least_context, Noise().gain, Noise().acquisition) == ("bicubic", 1.5, None, None)


def test_a_noise_gain_out_of_range_or_with_inverted_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise gain must be in \[0, 1\], got -0.1"):
        Noise(gain=-0.1)
    with pytest.raises(ValueError, match="noise gain 0.1 needs source 'random', got 'inverted'"):
        Noise(source="inverted", gain=0.1)


def test_coherence_and_joining_are_lengths_and_coherence_excludes_rho() -> None:
    with pytest.raises(ValueError, match="coherence_mm must be >= 0 mm, got -1"):
        Noise(coherence_mm=-1)
    with pytest.raises(ValueError, match="set noise rho or coherence_mm, not both, got 0.5 and 6"):
        Noise(rho=0.5, coherence_mm=6)
    with pytest.raises(ValueError, match="joined_mm must be >= 0 mm, got -2"):
        InpaintOptions(joined_mm=-2)
    assert (Noise().coherence_mm, InpaintOptions().joined_mm) == (0, 0)
