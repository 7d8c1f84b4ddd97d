from __future__ import annotations

import numpy as np
import pytest

from monai_diffaug.studies import memorisation as memorisation_module
from monai_diffaug.studies.masked_images import real_lesions
from monai_diffaug.studies.memorisation import lesion_views, memorisation
from monai_diffaug.studies.painter import Painter

RNG = np.random.RandomState(0)
TRAINING = RNG.standard_normal((60, 20))


def test_fresh_samples_of_the_same_distribution_are_no_suspects():
    fresh = np.random.RandomState(1).standard_normal((400, 20))
    held_out = np.random.RandomState(2).standard_normal((400, 20))
    figures = memorisation(fresh, TRAINING, held_out)
    assert figures.share_below == pytest.approx(0.05, abs=0.04) and figures.median_ratio == pytest.approx(1, abs=0.05)


def test_copies_are_found_and_point_to_their_original():
    copies = TRAINING[[7, 3]] + 0.01
    fresh, held_out = np.random.RandomState(1).standard_normal((8, 20)), np.random.RandomState(2).standard_normal((60, 20))
    figures = memorisation(np.concatenate([fresh, copies]), TRAINING, held_out)
    assert set(figures.suspects[:2]) == {8, 9} and figures.nearest[8] == 7 and figures.nearest[9] == 3
    assert figures.generated[8] == pytest.approx(0.01 * np.sqrt(20))


def test_the_nearest_view_counts():
    views = np.stack([np.random.RandomState(3).standard_normal((2, 20)), TRAINING[:2]], axis=1)
    figures = memorisation(views, TRAINING, TRAINING + 1)
    assert np.allclose(figures.generated, 0) and list(figures.nearest) == [0, 1]


def test_lesion_views_ignore_brightness_and_place_but_not_texture():
    rng = np.random.RandomState(0)
    lesion = rng.rand(20, 24)
    image = np.full((1, 100, 100), 5.0)
    image[0, 10:30, 12:36] = lesion
    moved = np.zeros((1, 100, 100))
    moved[0, 50:70, 42:66] = lesion
    mask, moved_mask = np.zeros((100, 100)), np.zeros((100, 100))
    mask[10:30, 12:36] = moved_mask[50:70, 42:66] = 1
    base = lesion_views(image * 3 + 20, mask)
    assert base.shape == (2, 1024) and np.allclose(base[0].reshape(32, 32)[:, ::-1].ravel(), base[1])
    assert np.allclose(base, lesion_views(image, mask[None]))
    assert np.allclose(lesion_views(moved, moved_mask), lesion_views(np.where(mask[None] > 0, image, 0), mask), atol=1e-5)


@pytest.mark.parametrize(("generated", "training", "name"), [((3, 5), (60, 20), "generated"), ((3, 20), (1, 20), "training")])
def test_wrong_shapes_are_refused(generated, training, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        memorisation(np.zeros(generated), np.zeros(training), TRAINING)


def test_painted_lesions_that_are_training_lesions_are_all_suspects(breast, random_inpainter, monkeypatch):
    copies = real_lesions(breast, 30, section="training")[:4]
    monkeypatch.setattr(memorisation_module, "painted_lesions", lambda *arguments: (copies, copies))
    lesions = memorisation_module.gather(breast, 4, Painter(), training=30)
    figures, indices = memorisation_module.measure(lesions, model=random_inpainter), [one.index for one in lesions.training]
    for each in figures.values():
        assert each.share_below == 1 and [indices[i] for i in each.nearest] == [one.index for one in copies]
    assert f"0.00 to training image {copies[0].index}" in memorisation_module.table(figures, indices, suspects=4)
