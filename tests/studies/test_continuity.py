from __future__ import annotations

import numpy as np
import pytest

from monai_diffaug.geometry.slices import slice_plane, to_slices, touched
from monai_diffaug.studies.continuity import continuity, measure, middle_slices, table, volumes_of
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.study_images import StudyData


def volume() -> np.ndarray:
    """Smooth along each axis, so that neighbouring slices differ by 1."""
    return np.broadcast_to(np.arange(12.0), (1, 10, 11, 12)).copy()


MASK = np.zeros((10, 11, 12))
MASK[3:7, 3:7, 4:8] = 1


def test_an_unchanged_volume_is_as_continuous_as_it_was():
    result = continuity(volume(), volume(), MASK)
    assert (result.jump, result.jump_ratio, result.end_jump_ratio) == (1, 1, 1)
    assert result.n_pairs == 3 and result.n_voxels == 48


def test_slices_painted_independently_jump_and_lose_correlation():
    rng = np.random.RandomState(0)
    smooth, rough = volume(), volume()
    texture = 5 * rng.standard_normal((4, 4))
    for z in range(4, 8):
        smooth[0, 3:7, 3:7, z] += texture
        rough[0, 3:7, 3:7, z] += 5 * rng.standard_normal((4, 4))
    coherent, independent = continuity(volume(), smooth, MASK), continuity(volume(), rough, MASK)
    assert coherent.jump_ratio == pytest.approx(1) and independent.jump_ratio > 3
    assert coherent.correlation > 0.9 > 0.5 > independent.correlation


def test_a_step_from_painted_to_real_slices_shows_at_the_ends_only():
    edited = volume()
    edited[0][MASK > 0] += 10
    result = continuity(volume(), edited, MASK)
    assert result.jump_ratio == pytest.approx(1) and result.end_jump == pytest.approx((11 + 9) / 2)


def test_what_lies_outside_the_mask_does_not_count():
    edited = volume()
    edited[0, 0] = 99
    assert continuity(volume(), edited, MASK).jump == 1


def test_the_direction_follows_plane_and_affine():
    assert continuity(volume(), volume(), MASK, plane="coronal").jump == 0
    turned = np.array([[0, 0, 1.0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # the last axis runs to the right
    assert continuity(volume(), volume(), MASK, affine=turned).jump == 0
    assert continuity(volume(), volume(), MASK, affine=turned, plane="sagittal").jump == 1


def test_a_mask_over_all_slices_has_no_ends():
    assert np.isnan(continuity(volume(), volume(), np.ones((10, 11, 12))).end_jump_ratio)


def test_a_single_slice_or_another_grid_is_refused():
    single = np.zeros((10, 11, 12))
    single[3, 3, 3] = 1
    with pytest.raises(ValueError, match="two slices or more"):
        continuity(volume(), volume(), single)
    with pytest.raises(ValueError, match="on its grid"):
        continuity(volume(), volume(), MASK[:-1])


def test_volumes_have_the_plane_and_window_of_their_entry_and_the_middle_slices_of_the_label_are_repainted(packed):
    volumes = volumes_of(StudyData.open(packed("volumes")))
    assert [(v.name, v.plane, v.window) for v in volumes] == [
        ("spleen, CT", "axial", (-160.0, 240.0)),
        ("disc or spinal canal, MRI", "sagittal", None),
    ]
    for volume in volumes:
        some, everything = middle_slices(volume, 4), middle_slices(volume)
        assert some.shape == volume.image.shape and bool((everything >= some).all())
        plane = slice_plane(volume.image.affine, volume.plane, 3)
        chosen, whole = touched(to_slices(some, plane)), touched(to_slices(everything, plane))
        assert len(chosen) == 4 and np.ptp(chosen) == 3
        assert abs(np.mean(chosen) - np.mean(whole)) <= 1


def test_correlated_noise_lowers_the_jump_between_slices(user_datalist, random_inpainter):
    volumes = volumes_of(StudyData.open(user_datalist, plane="axial"))
    rows = measure(volumes, Painter(random_inpainter, num_inference_steps=1), slices=3, noise_rho=(0.0, 1.0))
    assert [(row.volume, row.noise_rho) for row in rows] == [("benign nodule, ultrasound", rho) for rho in (0.0, 1.0)]
    assert rows[0].figures.n_pairs == 2 and rows[1].figures.jump < rows[0].figures.jump
    assert table(rows).count("original") == 3 and len(table(rows).splitlines()) == 4
