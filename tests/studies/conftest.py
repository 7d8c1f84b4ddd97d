"""Real images for the tests of studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from monai_diffaug.studies.study_images import StudyData


@pytest.fixture(scope="session")
def breast(packed: Callable[..., Path]) -> StudyData:
    """Breast ultrasound: benign and malignant masses and normal images."""
    return StudyData.open(packed("breast_ultrasound"))
