"""An arm that nobody with 40 labelled images can have, to know what painted lesions could add at most.

``python -m monai_diffaug.studies.downstream --arms none,monai_diffaug.studies.oracle:real_lesions``
"""

from __future__ import annotations

from collections.abc import Sequence

from monai_diffaug.studies.arms import Generator
from monai_diffaug.studies.cases import Case
from monai_diffaug.studies.downstream import STUDIES, labelled_cases
from monai_diffaug.studies.lesion_sources import BorrowedLesiond

__all__ = ["DONORS", "real_lesions"]

DONORS = 250


def real_lesions(cases: Sequence[Case], generator: Generator) -> BorrowedLesiond:
    """Real lesions of 250 labelled breast ultrasound images, pasted on free tissue of the labelled ones: the best painted ones could be."""
    return BorrowedLesiond(labelled_cases(STUDIES["breast_ultrasound"], DONORS), paste=True)
