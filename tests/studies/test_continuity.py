from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.geometry.slices import slice_plane, to_slices, touched
from monai_diffaug.studies.continuity import (
    continuity,
    main,
    measure,
    middle_slices,
    settings_of,
    spectrum_along,
    table,
    volumes_of,
    within_goal,
)
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.study_images import StudyData, StudyInputError


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


def test_each_setting_is_measured_in_three_planes_and_shared_noise_lowers_the_jump(user_datalist, random_inpainter):
    volumes = volumes_of(StudyData.open(user_datalist, plane="axial"))
    painter = Painter(random_inpainter, num_inference_steps=1)
    rows = measure(volumes, painter, slices=3, settings=settings_of((0.0, 1.0), joined_mm=4, coherence_mm=6))
    names = ["noise rho 0", "noise rho 1", "acquisition noise", "+ joined 4 mm", "+ coherence 6 mm"]
    assert [(row.volume, row.setting) for row in rows] == [("benign nodule, ultrasound", name) for name in names]
    assert all(list(row.planes) == ["axial", "coronal", "sagittal"] and row.seconds > 0 for row in rows)
    jumps = [row.planes["axial"].jump for row in rows]
    assert jumps[1] < jumps[0] and rows[0].planes["axial"].n_pairs == 2 and len(set(jumps)) > 3
    lines = table(rows).splitlines()
    assert len(lines) == 1 + 5 * 3 and lines[1].split()[-2] in ("yes", "no") and "coronal" in lines[2]


def test_the_spectrum_of_white_noise_halves_in_power_with_each_octave_and_blurred_noise_has_less_of_the_finest():
    noise = torch.randn(24, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(24, 1, 40, 40, dtype=torch.bool)
    assert spectrum_along(noise, masks) == pytest.approx([0.5**0.5, 0.5, 0.125**0.5], rel=0.03)
    blurred = spectrum_along((noise[1:] + noise[:-1]) / 2, masks[1:])
    assert blurred[0] == pytest.approx(0.125**0.5, rel=0.03) and blurred[2] > 0.3
    assert np.isnan(spectrum_along(noise[:3], masks[:3])[1:]).all()
    masks[:, :, :, 20:] = False
    noise[:, :, :, 20:] = 100
    assert spectrum_along(noise, masks)[0] == pytest.approx(0.5**0.5, rel=0.03)


def test_the_goal_needs_jump_and_spectrum_and_ignores_spans_longer_than_the_mask():
    mask = np.zeros((10, 11, 12))
    mask[1:9, 1:9, 4:8] = 1
    same = continuity(volume(), volume(), mask)
    assert within_goal(same) and np.isnan(same.spectrum[2]) and same.spectrum[0] == 1
    rough = volume() + np.random.RandomState(0).normal(0, 1, volume().shape)
    assert not within_goal(continuity(volume(), rough, mask))


def test_the_command_prints_a_line_per_plane_and_refuses_an_option_out_of_range(user_datalist, random_inpainter, tmp_path, capsys):
    fast = ["--data", str(user_datalist), "--model", str(random_inpainter), "--num-inference-steps", "1", "--slices", "3"]
    assert main([*fast, "--noise-rho", "0", "--joined-mm", "0", "--coherence-mm", "0", "--out", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    assert "acquisition noise" in printed and "joined" not in printed and "within_goal" in (tmp_path / "figures.json").read_text()
    with pytest.raises(StudyInputError, match="noise rho"):
        main([*fast, "--noise-rho", "2"])
