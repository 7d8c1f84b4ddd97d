from __future__ import annotations

import pytest

from monai_diffaug.models.validator_acceptance import REAL_ACCEPTANCE, accepts_real_lesions, modality_in, strictness_of
from monai_diffaug.prompts import VOCABULARIES


def test_measured_modalities_are_those_of_the_vocabularies() -> None:
    assert set(REAL_ACCEPTANCE) <= {table.modality for table in VOCABULARIES.values()}
    assert all(0 <= share <= 1 and count >= 10 for share, count in REAL_ACCEPTANCE.values())


@pytest.mark.parametrize(
    ("modality", "accepts"), [("us", True), ("ultrasound", True), ("fundus", True), ("mri", False), ("colonoscopy", False)]
)
def test_the_judge_is_trusted_where_it_accepts_half_of_the_real_lesions(modality: str, accepts: bool) -> None:
    assert accepts_real_lesions(modality) is accepts
    assert (strictness_of(modality) == "") is accepts


def test_a_modality_that_was_not_measured_is_told() -> None:
    for modality in ("otoscopy", "x-ray"):
        assert not accepts_real_lesions(modality) and f"not measured on real lesions of modality {modality}" in strictness_of(modality)


def test_the_modality_of_a_prompt_is_found_wherever_it_stands() -> None:
    assert modality_in("brain mri, glioma, irregular") == "MRI" and modality_in("polyp in colon, round, endoscopy") == "endoscopy"
    assert modality_in("an octopus in a dialect") is None
