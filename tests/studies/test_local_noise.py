from __future__ import annotations

import pytest

from monai_diffaug.studies.local_noise import GROUPS, Sweep, groups_of, images_of, laws, sweep, table
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.study_images import StudyData

SCALES = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def curves(packed) -> tuple[list[Sweep], list[Sweep]]:
    """The embedded model on one brain tumour and one chest x-ray, both noise sources."""
    images = images_of(StudyData.open(packed("brain_mri_tumour", "chest_xray")), 1)
    random, inverted = (sweep(Painter(num_inference_steps=6, guidance_scale=1.0), images, s, scales=SCALES) for s in ("random", "inverted"))
    return random, inverted


@pytest.mark.parametrize(
    "law",
    [
        "random_moves_away_from_twin",
        "random_keeps_distance_to_original",
        "inverted_moves_away_from_original",
        "inverted_zero_is_the_round_trip",
    ],
)
@pytest.mark.slow
def test_the_transform_obeys_the_law(curves, law) -> None:
    assert laws(*curves)[law], curves


def test_nothing_changes_outside_the_mask(curves) -> None:
    assert sum(s.changed_outside for of_source in curves for s in of_source) == 0


def test_a_sweep_starts_at_its_twin(curves) -> None:
    assert all(s.to_twin[0] == pytest.approx(1.0, abs=1e-5) for of_source in curves for s in of_source)


def made_up(to_original, to_twin, to_round_trip=1.0) -> Sweep:
    return Sweep(SCALES, to_original, to_twin, 0.95, to_round_trip, 0)


def test_the_laws_are_broken_by_curves_that_break_them() -> None:
    good = laws([made_up((0.3, 0.31, 0.29), (1.0, 0.7, 0.3))], [made_up((0.9, 0.6, 0.3), (1.0, 0.7, 0.3))])
    assert all(good.values())
    bad = laws([made_up((0.9, 0.6, 0.3), (1.0, 1.0, 0.99))], [made_up((0.3, 0.5, 0.3), (1.0, 0.5, 0.3), to_round_trip=0.6)])
    assert not any(bad.values())


def test_the_table_names_the_papers_figures_next_to_the_measured_ones() -> None:
    curve = made_up((0.9, 0.6, 0.3), (1.0, 0.7, 0.3))
    text = table({group.name: {"random": [curve], "inverted": [curve]} for group in GROUPS})
    assert "97.9" in text and "103.3" in text and "42.2" in text and "40.0" in text


def test_each_data_set_gives_lesions_or_else_regions_on_tissue(packed) -> None:
    data = StudyData.open(packed("spleen_ct", "chest_xray", "colonoscopy_polyp"))
    images = images_of(data, 2)
    prompts = ["CT of abdomen, spleen", "x-ray of chest, pneumonia", "endoscopy of colon, polyp"]
    assert [one.prompt for one in images] == [prompt for prompt in prompts for _ in range(2)]
    assert all(one.mask.sum() >= 60 and one.image.shape[1:] == one.mask.shape[1:] for one in images)
    groups = groups_of(data)
    assert [(group.name, group.paper_percent) for group in groups] == [
        ("chest x-ray", 97.9),
        ("abdominal CT", 103.3),
        ("colonoscopy polyp", None),
    ]


def test_an_unknown_noise_source_or_a_sweep_without_its_twin_is_refused() -> None:
    with pytest.raises(ValueError, match="noise source"):
        sweep(Painter(), [], "other")
    with pytest.raises(ValueError, match="start with 0"):
        sweep(Painter(), [], "random", scales=(0.5, 1.0))
