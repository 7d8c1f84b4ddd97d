from __future__ import annotations

import numpy as np
import pytest

from monai_diffaug.training.captions import caption, measure

YS, XS = np.indices((128, 128))
DISC = np.hypot(YS - 64, XS - 64) < 20
OVAL = np.hypot((YS - 64) / 1.0, (XS - 64) / 2.2) < 15
STAR = DISC | (np.abs(YS - 64) < 3) & (np.abs(XS - 64) < 60) | (np.abs(XS - 64) < 3) & (np.abs(YS - 64) < 60)


def scene(mask: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.RandomState(0).normal(0.5, 0.05, mask.shape)
    return np.where(mask, level, noise)


@pytest.mark.parametrize(("mask", "word"), [(DISC, 0), (OVAL, 1), (STAR, 2)])
def test_shape_runs_round_oval_irregular(mask, word) -> None:
    assert measure(scene(mask, 0.2), mask, 0.02).shape == word


@pytest.mark.parametrize(("level", "word"), [(0.2, 0), (0.5, 1), (0.8, 2)])
def test_grey_runs_dark_equal_bright(level, word) -> None:
    assert measure(scene(DISC, level), DISC, 0.02).grey == word


def test_a_sharp_and_a_blurred_margin_differ() -> None:
    from scipy.ndimage import gaussian_filter

    assert measure(scene(DISC, 0.2), DISC, 0.02).margin == 0
    assert measure(gaussian_filter(scene(DISC, 0.2), 8), DISC, 0.02).margin == 1


def test_captions_name_the_measured_words_and_nothing_else() -> None:
    measured = measure(scene(DISC, 0.2), DISC, 0.02)
    texts = {caption(np.random.RandomState(i), "ultrasound", "breast", "benign mass", measured) for i in range(60)}
    assert all("benign mass" in text and "hyperechoic" not in text and "irregular" not in text for text in texts)
    assert any("hypoechoic" in text for text in texts) and len(texts) > 20


def test_normal_tissue_has_no_attributes() -> None:
    measured = measure(scene(DISC, 0.2), DISC, 0.02)
    texts = {caption(np.random.RandomState(i), "ultrasound", "breast", "normal tissue", measured) for i in range(30)}
    assert not any("hypoechoic" in text for text in texts)
