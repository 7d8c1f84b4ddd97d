from __future__ import annotations

import pytest
import torch

from monai_diffaug.edit.options import InpaintOptions, Noise, SoftEdge
from monai_diffaug.files.fidelity import local_ssim
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec, shared_model
from monai_diffaug.studies.local_noise import GROUPS, Case, Sweep, cases_of, finding_cases, laws, sweep, table
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

SCALES = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def curves(real_data) -> tuple[list[Sweep], list[Sweep]]:
    """The embedded model on one brain tumour and one chest x-ray, both noise sources."""
    model = shared_model(ModelSpec("inpainter"), "cpu", load_inpainter)
    cases = [*finding_cases("brain_mri_tumour", 1), *cases_of(GROUPS[0], 1)]
    return (
        [sweep(model, case, "random", scales=SCALES, num_inference_steps=8) for case in cases],
        [sweep(model, case, "inverted", scales=SCALES, num_inference_steps=8) for case in cases],
    )


@pytest.mark.parametrize(
    "law",
    [
        "random_moves_away_from_twin",
        "random_keeps_distance_to_original",
        "inverted_moves_away_from_original",
        "inverted_zero_is_the_round_trip",
    ],
)
def test_the_embedded_model_obeys_the_law(curves, law) -> None:
    assert laws(*curves)[law], curves


def test_nothing_changes_outside_the_mask(curves) -> None:
    assert sum(s.changed_outside for of_source in curves for s in of_source) == 0


def test_a_sweep_starts_at_its_own_twin(curves) -> None:
    assert all(s.to_twin[0] == pytest.approx(1.0, abs=1e-5) for of_source in curves for s in of_source)


def made_up(to_original, to_twin, to_round_trip=1.0) -> Sweep:
    return Sweep(SCALES, to_original, to_twin, 0.95, to_round_trip, 0)


def test_the_laws_are_broken_by_curves_that_break_them() -> None:
    good = laws([made_up((0.3, 0.31, 0.29), (1.0, 0.7, 0.3))], [made_up((0.9, 0.6, 0.3), (1.0, 0.7, 0.3))])
    assert all(good.values())
    bad = laws([made_up((0.9, 0.6, 0.3), (1.0, 1.0, 0.99))], [made_up((0.3, 0.5, 0.3), (1.0, 0.5, 0.3), to_round_trip=0.6)])
    assert not any(bad.values())


def test_the_table_names_the_papers_figures_beside_the_measured_ones() -> None:
    curve = made_up((0.9, 0.6, 0.3), (1.0, 0.7, 0.3))
    text = table({group.name: {"random": [curve], "inverted": [curve]} for group in GROUPS})
    assert "97.9" in text and "103.3" in text and "42.2" in text and "40.0" in text


def test_the_regions_lie_in_the_images_of_the_validation_groups(real_data) -> None:
    for group in GROUPS:
        cases = cases_of(group, 2)
        assert len(cases) == 2 * len(group.sources)
        assert all(case.mask.sum() >= 60 and case.image.shape[1:] == case.mask.shape[1:] for case in cases)


def test_an_unknown_noise_source_or_a_sweep_without_its_twin_is_refused(random_inpainter) -> None:
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    case = Case(torch.zeros(1, 64, 64, dtype=torch.uint8), torch.ones(1, 64, 64, dtype=torch.uint8), "")
    with pytest.raises(ValueError, match="noise_source"):
        sweep(model, case, "other")
    with pytest.raises(ValueError, match="start with 0"):
        sweep(model, case, "random", scales=(0.5, 1.0))


def test_the_transform_reproduces_the_round_trip_with_inverted_noise_and_a_soft_mask(real_data) -> None:
    case = finding_cases("brain_mri_tumour", 1)[0]
    model = shared_model(ModelSpec("inpainter"), "cpu", load_inpainter)
    reachable = sweep(model, case, "random", scales=(0.0,), num_inference_steps=1).round_trip
    scores = {}
    for noise_scale in (0.0, 1.0):
        transform = DiffusionLocalInpaint(
            options=InpaintOptions(noise=Noise(source="inverted", scale=noise_scale), soft_edge=SoftEdge(width_px_at_512=8.0)),
            guidance_scale=1.0,
            num_inference_steps=8,
        )
        edited = torch.as_tensor(transform.apply(case.image, case.mask, case.prompt, seed=0).image)
        scores[noise_scale] = local_ssim(case.image.numpy(), edited.numpy(), case.mask.numpy())
    assert scores[0.0] >= reachable - 0.02  # the soft edge may do better: it has no step at the boundary
    assert scores[1.0] < scores[0.0] - 0.05
