"""A reference arm that needs more labelled images than the study has: the most that painted lesions could add.

``monai-diffaug evaluate downstream --arms none,monai_diffaug.studies.oracle:real_lesions``
"""

from __future__ import annotations

from collections.abc import Sequence

from monai_diffaug.studies.arms import Generator
from monai_diffaug.studies.lesion_sources import BorrowedLesiond
from monai_diffaug.studies.masked_images import MaskedImage

__all__ = ["DONORS", "real_lesions"]

DONORS = 250


def real_lesions(cases: Sequence[MaskedImage], generator: Generator) -> BorrowedLesiond:
    """Real lesions of 250 labelled images, pasted on free tissue of the labelled ones: the best painted ones could be.

    Raises:
        ValueError: the study gives no further images.
    """
    if generator.more_labelled is None:
        raise ValueError("this arm needs further labelled images: Generator(more_labelled=...)")
    return BorrowedLesiond(generator.more_labelled(DONORS), paste=True)
