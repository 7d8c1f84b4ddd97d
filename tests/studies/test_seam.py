from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.masks.soft_edge import composite, soft_mask
from monai_diffaug.studies.masked_images import lesions_of_each
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.seam import measure_seams, seam, seam_profile, table
from monai_diffaug.studies.study_images import StudyData


@pytest.fixture
def smooth() -> np.ndarray:
    ys, xs = np.indices((64, 64))
    return (100 + 10 * np.sin(xs / 9) + 10 * np.cos(ys / 7))[None]


@pytest.fixture
def disc() -> np.ndarray:
    ys, xs = np.indices((64, 64))
    return (np.hypot(ys - 30, xs - 33) < 14)[None]


def test_an_untouched_image_has_a_seam_of_one(smooth, disc) -> None:
    assert seam(smooth, smooth, disc).to_original == pytest.approx(1.0)


def test_a_step_of_known_height_is_measured_as_that_height(disc) -> None:
    flat = np.zeros((1, 64, 64))
    square = np.zeros((64, 64), bool)
    square[20:40, 20:40] = True
    assert seam(flat, flat + 7.0 * square, square).jump == pytest.approx(7.0)


def test_a_straight_ramp_across_the_boundary_is_no_seam() -> None:
    ramp = np.broadcast_to(3.0 * np.arange(64), (1, 64, 64)).copy()
    half = np.zeros((64, 64), bool)
    half[:, :30] = True
    assert seam(ramp, ramp, half).jump == pytest.approx(0.0, abs=1e-9)


def test_a_brighter_inside_gives_a_seam_that_soft_blending_lowers(smooth, disc) -> None:
    brighter = torch.from_numpy(smooth + 20)
    scores = {}
    for name, width in (("hard", 0.0), ("inner", 4.0), ("centre", 4.0), ("grow", 4.0)):
        soft = soft_mask(torch.from_numpy(disc[0]), width, "grow" if name == "hard" else name)
        result = composite(torch.from_numpy(smooth), brighter, soft[None]).numpy()
        scores[name] = seam(smooth, result, disc).to_original
    assert scores["hard"] > 10
    assert scores["inner"] < 0.3 * scores["hard"] and scores["centre"] < 0.3 * scores["hard"]
    assert scores["grow"] < 0.7 * scores["hard"]


def test_the_profile_finds_a_seam_that_was_only_moved_outwards(smooth, disc) -> None:
    ys, xs = np.indices((64, 64))
    wider = np.hypot(ys - 30, xs - 33) < 20
    profile = seam_profile(smooth, smooth + 20 * wider, disc, offsets_px=(0, 6))
    assert profile[0].to_original == pytest.approx(1.0, abs=0.05) and profile[1].to_original > 5


def test_every_channel_counts_alike(smooth, disc) -> None:
    colour, edited = np.repeat(smooth, 3, 0), np.repeat(smooth + 20 * disc, 3, 0)
    assert seam(colour, edited, disc).jump == pytest.approx(seam(smooth, smooth + 20 * disc, disc).jump)


@pytest.mark.parametrize(
    ("mask", "message"), [(np.zeros((64, 64)), "no boundary"), (np.ones((64, 64)), "no boundary"), (np.ones((9, 9)), "grid")]
)
def test_a_mask_without_a_boundary_or_on_another_grid_is_refused(smooth, mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        seam(smooth, smooth, mask)


def test_the_command_compares_the_four_ways_of_blending(packed) -> None:
    lesions = lesions_of_each(StudyData.open(packed("brain_mri_tumour")), 1)
    rows = measure_seams(lesions, Painter(num_inference_steps=1))
    assert [row.name for row in rows] == ["hard", "grow", "inner", "centre"]
    assert all(np.isfinite(row.boundary).all() and row.worst >= row.boundary.to_original - 1e-9 for row in rows)
    assert len(table(rows).splitlines()) == 5
