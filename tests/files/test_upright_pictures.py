from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from monai_diffaug.files.upright_pictures import class_ids, read_pixels, visible_colours


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("converter", [visible_colours, class_ids])
def test_a_picture_is_turned_as_its_orientation_tag_says(tmp_path, orientation, converter) -> None:
    pixels = np.zeros((32, 48), np.uint8)
    pixels[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        visible = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(read_pixels(tmp_path / "a.png", ".png", converter).stored[0], visible)


def test_transparency_is_left_out_and_a_palette_stays_a_label_and_becomes_colours_of_an_image() -> None:
    palette = Image.new("P", (2, 2), 3)
    palette.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 250, 100, 50])
    assert np.unique(np.asarray(class_ids(palette))).tolist() == [3]
    assert np.asarray(visible_colours(palette))[0, 0].tolist() == [250, 100, 50]
    assert visible_colours(Image.new("RGBA", (2, 2))).mode == "RGB" and class_ids(Image.new("LA", (2, 2))).mode == "L"
