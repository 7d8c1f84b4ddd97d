from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.errors import GridMismatchError
from monai_diffaug.generate.report_pictures import data_url, strip_of
from tests.generate.run_folders import save


def case(folder, shape):
    """Mid-grey original, a brighter square in the result, and the square as mask."""
    original = np.full(shape, 100, np.uint8)
    result, mask = original.copy(), np.zeros(shape[:2] if shape[-1] == 3 else shape, np.uint8)
    inside = tuple(slice(n // 2, n // 2 + n // 5) for n in mask.shape)
    result[inside], mask[inside] = 200, 1
    suffix = ".nii.gz" if mask.ndim == 3 else ".png"
    paths = [folder / f"{name}{suffix}" for name in ("original", "result", "mask")]
    for path, array in zip(paths, (original, result, mask), strict=True):
        save(array, path)
    return paths


@pytest.mark.parametrize(("shape", "size"), [((60, 80), (400, 75)), ((60, 80, 3), (400, 75)), ((80, 40), (400, 100))])
def test_a_picture_is_one_row_of_four_panels_without_bars(tmp_path, shape, size):
    strip = strip_of(*case(tmp_path, shape), panel_px=100)
    assert strip.size == size
    panels = [np.array(strip).astype(int)[:, k * 100 + 3 : k * 100 + 97] for k in range(4)]
    change = np.abs(panels[2] - panels[0]).max(axis=-1)
    rows = np.flatnonzero((change > 50).any(axis=1))
    assert rows.min() / size[1] == pytest.approx(0.5, abs=0.03) and change.max() > 80  # brighter in the lower half
    assert panels[3][size[1] // 4, 50].min() > 240  # no change is white
    assert (panels[1] != panels[0]).any()  # the outline


def test_a_volume_has_a_row_for_each_plane_in_its_proportions(tmp_path):
    strip = strip_of(*case(tmp_path, (40, 50, 10)), panel_px=100)
    # 2 x 2 x 3 mm: axial 80 x 100 mm, coronal 80 x 30 mm, sagittal 100 x 30 mm (upright in the page)
    assert strip.width == 400 and strip.height == pytest.approx(100 + 38 + 30, abs=8)


def test_files_on_different_grids_are_refused(tmp_path):
    original, result, mask = case(tmp_path, (60, 80))
    save(np.zeros((60, 81), np.uint8), mask)
    with pytest.raises(GridMismatchError, match="mask"):
        strip_of(original, result, mask)


def test_the_picture_is_embedded_as_jpeg():
    url = data_url(Image.new("RGB", (8, 4), "red"))
    kind, content = url.split(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(content))).size == (8, 4)
