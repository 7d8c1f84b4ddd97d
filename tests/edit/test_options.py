from __future__ import annotations

import pytest

from monai_diffaug.edit.options import RepaintSettings


def test_settings_know_a_hard_edge_in_either_unit() -> None:
    assert RepaintSettings(soft_width=0).hard_edge and RepaintSettings(soft_width_mm=0.0).hard_edge
    assert not RepaintSettings(soft_width=0, soft_width_mm=1.0).hard_edge


def test_the_width_of_an_edge_is_of_512_pixels_or_in_mm() -> None:
    assert RepaintSettings(soft_width=4.0).soft_width_px(256, pixel_mm=0.5) == 2.0
    assert RepaintSettings(soft_width_mm=4.0).soft_width_px(256, pixel_mm=0.5) == 8.0


@pytest.mark.parametrize("settings", [RepaintSettings(soft_width_mm=3.0), RepaintSettings(soft_width=30.0)])
def test_the_least_side_holds_the_mask_and_four_standard_deviations_on_each_side(settings: RepaintSettings) -> None:
    side = settings.least_side(20, pixel_mm=0.5)
    assert side == pytest.approx(20 + 8 * settings.soft_width_px(round(side), pixel_mm=0.5), abs=0.3)


def test_an_edge_wider_than_any_square_asks_for_a_large_one() -> None:
    assert RepaintSettings(soft_width=500.0).least_side(20, pixel_mm=0.5) == pytest.approx(2000)


def test_an_edge_that_does_not_grow_asks_for_nothing_more() -> None:
    assert RepaintSettings(soft_width_mm=9.0, soft_mode="inner").least_side(20, pixel_mm=0.5) == 20
    assert RepaintSettings(soft_width=0).least_side(20, pixel_mm=0.5) == 20
