"""Which real lesions the embedded validator accepts, by modality: a judge that refuses most of them says nothing about painted ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from monai_diffaug.prompts import VOCABULARIES, vocabulary_of

__all__ = ["LEAST_ACCEPTANCE", "REAL_ACCEPTANCE", "accepts_real_lesions", "modality_in", "strictness_of"]

LEAST_ACCEPTANCE = 0.5
# share of real validation lesions in place that ``LatentValidate()`` accepts, and their number, as ``monai-diffaug evaluate judge`` prints
# them for the embedded validator; to be measured again when its weights change
REAL_ACCEPTANCE: Mapping[str, tuple[float, int]] = MappingProxyType(
    {"ultrasound": (0.53, 40), "endoscopy": (0.22, 18), "fundus photograph": (0.65, 40), "CT": (0.22, 27), "MRI": (0.39, 36)}
)


def accepts_real_lesions(modality: str) -> bool:
    """Whether the embedded validator accepts at least half of the real lesions of a modality; False where none were measured.

    >>> accepts_real_lesions("US"), accepts_real_lesions("CT")
    (True, False)
    """
    return REAL_ACCEPTANCE.get(_name(modality), (0.0, 0))[0] >= LEAST_ACCEPTANCE


def strictness_of(modality: str) -> str:
    """What to say where the embedded validator is chosen for a modality; empty where it accepts at least half of the real lesions.

    >>> strictness_of("CT")[:62]
    'the embedded validator accepts only 22% of 27 real lesions in '
    """
    name = _name(modality)
    if name not in REAL_ACCEPTANCE:
        return f"the embedded validator was not measured on real lesions of modality {name}; measure it, or take another judge"
    share, count = REAL_ACCEPTANCE[name]
    if share >= LEAST_ACCEPTANCE:
        return ""
    return f"the embedded validator accepts only {share:.0%} of {count} real lesions in {name}: its refusals say little about painted ones"


def modality_in(prompt: str) -> str | None:
    """The modality that a prompt names, as the vocabularies spell it; None for none.

    >>> modality_in("CT of abdomen, liver metastasis"), modality_in("a mass")
    ('CT', None)
    """
    names = [table.modality for table in VOCABULARIES.values()]
    return next((name for name in names if re.search(rf"\b{re.escape(name)}\b", prompt, flags=re.IGNORECASE)), None)


def _name(modality: str) -> str:
    try:
        return vocabulary_of(modality).modality
    except ValueError:  # a vocabulary of the user's own
        return modality
