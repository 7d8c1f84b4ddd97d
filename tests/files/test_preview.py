from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.files.preview import PANEL_PX, draw_preview, save_preview, slices_of


def panel(preview: Image.Image, column: int, row: int = 0) -> np.ndarray:
    left, top = 6 + column * (PANEL_PX + 6), 22 + row * (PANEL_PX + 6)
    return np.asarray(preview.crop((left, top, left + PANEL_PX, top + PANEL_PX))).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_brighter_is_red_and_darker_is_blue(channels):
    original = np.full((channels, 64, 64), 100.0)
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 20:40, 20:40] = 1
    result = original.copy()
    result[:, 20:40, 20:30] += 50
    result[:, 20:40, 30:40] -= 50
    difference = panel(draw_preview(original, result, mask=mask, window=(0, 200), zoom=None), 3)
    scale = PANEL_PX // 64
    red, blue, white = difference[30 * scale, 25 * scale], difference[30 * scale, 35 * scale], difference[4 * scale, 4 * scale]
    assert tuple(red) == (255, 0, 0) and tuple(blue) == (0, 0, 255) and tuple(white) == (255, 255, 255)


def test_the_mask_is_outlined_in_its_panel_only():
    original = np.full((1, 64, 64), 100.0)
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 20:40, 20:40] = 1
    preview = draw_preview(original, original, mask=mask, window=(0, 200))
    assert not np.array_equal(panel(preview, 0), panel(preview, 1))
    assert np.array_equal(panel(preview, 0), panel(preview, 2))


def test_the_preview_of_a_volume_has_several_slices_with_the_mask():
    volume = np.random.RandomState(0).rand(1, 20, 22, 30)
    mask = np.zeros(volume.shape, np.uint8)
    mask[0, 5:10, 5:10, 12:24] = 1
    preview = draw_preview(volume, volume, mask=mask, affine=np.eye(4), rows=3, caption="a caption")
    assert preview.height > 3 * PANEL_PX
    assert not np.array_equal(panel(preview, 0, 0), panel(preview, 0, 2))


def test_a_volume_in_three_planes_shows_the_mask_in_each_with_its_proportions_in_mm():
    volume = np.zeros((1, 40, 40, 10))
    mask = np.zeros(volume.shape, np.uint8)
    mask[0, 10:30, 10:30, 2:8] = 1  # 20 x 20 x 24 mm
    preview = draw_preview(volume, volume + mask, mask=mask, affine=np.diag([1.0, 1.0, 4.0, 1.0]), plane=None, zoom=None)
    assert preview.height >= 3 * PANEL_PX and preview.height < 4 * PANEL_PX
    for row in range(3):
        difference = panel(preview, 3, row)
        red = (difference[..., 0] > 200) & (difference[..., 1] < 80)
        heights, widths = red.any(1).sum(), red.any(0).sum()
        assert 0.9 * (1 if row == 0 else 24 / 20) < heights / widths < 1.1 * (1 if row == 0 else 24 / 20)
    flat = np.zeros((1, 40, 40))
    assert draw_preview(flat, flat, mask=flat + 1, plane=None).height < 2 * PANEL_PX


def test_slices_do_not_depend_on_the_stored_orientation():
    volume = np.random.RandomState(0).rand(1, 4, 5, 6)
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 3
    assert np.array_equal(slices_of(volume, np.eye(4), "coronal"), slices_of(volume[:, ::-1], flipped, "coronal"))


def test_the_preview_is_written_without_a_part_file(tmp_path):
    save_preview(tmp_path / "a.png", draw_preview(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)), mask=np.ones((1, 8, 8))))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    Image.open(tmp_path / "a.png").load()
