"""Prompt vocabularies: the words of radiologists and endoscopists for findings and their attributes, one table per modality.

The order of an attribute's first three words is fixed where it is measurable on an image: shape runs round, oval,
irregular; margin sharp, unsharp; the grey-value axis dark, equal, bright against the surroundings. The training captions
(``monai_diffaug.training.captions``) measure exactly these words, so the embedded text encoder knows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["NORMAL", "VOCABULARIES", "Vocabulary", "compose_prompt", "expected_sign", "outline_words", "vocabulary_of"]

NORMAL = "normal tissue"
SHAPE_WORDS = ("round", "oval", "irregular")
MARGIN_WORDS = ("spiculated", "lobulated")
DARK = r"\b(hypo(echoic|dense|intense|attenuating)|anechoic|lucent|dark(er)?)\b"
BRIGHT = r"\b(hyper(echoic|dense|intense|attenuating)|opaque|bright(er)?)\b"
DEFAULT_TEMPLATE = "{modality} of {anatomy}, {finding}, {attributes}"


@dataclass(frozen=True)
class Vocabulary:
    """Words of one imaging modality.

    Attributes:
        modality: the word used for the modality in a prompt, e.g. ``"ultrasound"``.
        findings: anatomy -> the findings that occur there.
        attributes: axis (``"shape"``, ``"margin"``, ...) -> its words, in the measured order where there is one.
        grey_axis: the attribute axis that describes brightness against the surroundings.

    >>> from monai_diffaug import TextPrompt
    >>> ear = Vocabulary("otoscopy", {"ear drum": ("effusion", "perforation")}, {"size": ("small", "large")}, grey_axis="")
    >>> TextPrompt("otoscopy", finding="effusion", attributes=(), vocabulary=ear)()
    'otoscopy of ear drum, effusion'
    """

    modality: str
    findings: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, tuple[str, ...]]
    grey_axis: str

    @property
    def anatomies(self) -> tuple[str, ...]:
        return tuple(self.findings)


def _vocabulary(modality: str, grey_axis: str, findings: dict[str, tuple[str, ...]], attributes: dict[str, tuple[str, ...]]) -> Vocabulary:
    return Vocabulary(modality, MappingProxyType(findings), MappingProxyType(attributes), grey_axis)


_SIZE = ("small", "medium-sized", "large")

VOCABULARIES: Mapping[str, Vocabulary] = MappingProxyType(
    {
        # shape, margin and echo pattern after the ACR BI-RADS ultrasound lexicon
        "ultrasound": _vocabulary(
            "ultrasound",
            "echogenicity",
            {
                "breast": ("benign mass", "malignant mass", "simple cyst", "fibroadenoma"),
                "thyroid": ("benign nodule", "malignant nodule", "colloid cyst"),
                "liver": ("haemangioma", "hepatocellular carcinoma", "metastasis", "simple cyst"),
            },
            {
                "size": _SIZE,
                "shape": ("round", "oval", "irregular"),
                "margin": ("circumscribed margin", "indistinct margin", "microlobulated margin", "spiculated margin"),
                "echogenicity": ("hypoechoic", "isoechoic", "hyperechoic", "anechoic", "heterogeneous"),
            },
        ),
        "ct": _vocabulary(
            "CT",
            "density",
            {
                "brain": (
                    "intracranial haemorrhage",
                    "intraparenchymal haemorrhage",
                    "subdural haematoma",
                    "epidural haematoma",
                    "subarachnoid haemorrhage",
                    "intraventricular haemorrhage",
                    "haemorrhagic stroke",
                    "ischaemic stroke",
                ),
                "abdomen": ("spleen", "liver metastasis", "hepatic cyst", "renal cell carcinoma", "renal cyst"),
                "chest": ("lung nodule", "consolidation", "ground-glass opacity"),
                "pelvis": ("lymph node", "pelvic mass", "bladder tumour"),
            },
            {
                "size": _SIZE,
                "shape": ("round", "oval", "irregular"),
                "margin": ("well-defined margin", "ill-defined margin", "lobulated margin", "spiculated margin"),
                "density": ("hypodense", "isodense", "hyperdense", "heterogeneous"),
            },
        ),
        "mri": _vocabulary(
            "MRI",
            "signal",
            {
                "brain": ("glioma", "meningioma", "pituitary tumour", "metastasis", "infarct"),
                "prostate": ("prostate", "peripheral zone lesion", "transition zone lesion"),
                "spine": ("vertebra", "disc or spinal canal", "vertebral metastasis", "disc herniation", "cord lesion"),
            },
            {
                "size": _SIZE,
                "shape": ("round", "oval", "irregular"),
                "margin": ("well-defined margin", "ill-defined margin", "infiltrative margin"),
                "signal": ("hypointense", "isointense", "hyperintense", "heterogeneous"),
            },
        ),
        "x-ray": _vocabulary(
            "x-ray",
            "density",
            {
                "chest": ("pneumonia", "no finding", "lung nodule", "consolidation", "pleural effusion", "atelectasis"),
                "bone": ("fracture", "lytic lesion", "sclerotic lesion"),
            },
            {
                "size": _SIZE,
                "shape": ("round", "oval", "irregular"),
                "margin": ("well-defined margin", "ill-defined margin"),
                "density": ("lucent", "isodense", "opaque"),
            },
        ),
        "endoscopy": _vocabulary(
            "endoscopy",
            "brightness",
            {
                "colon": ("polyp", "adenoma", "flat lesion", "ulcer"),
                "gastrointestinal tract": (
                    "polyp",
                    "Barrett's oesophagus",
                    "cancer",
                    "high-grade dysplasia",
                    "suspicious lesion",
                ),
            },
            {
                "size": _SIZE,
                "shape": ("round", "oval", "irregular"),
                "margin": ("well-defined margin", "ill-defined margin"),
                "brightness": ("darker than mucosa", "mucosa-coloured", "brighter than mucosa"),
            },
        ),
        "fundus": _vocabulary(
            "fundus photograph",
            "brightness",
            {
                "retina": ("optic disc", "optic cup", "enlarged optic cup", "hard exudate", "haemorrhage", "drusen"),
            },
            {
                "size": _SIZE,
                "shape": ("round", "oval", "irregular"),
                "margin": ("well-defined margin", "ill-defined margin"),
                "brightness": ("darker than retina", "retina-coloured", "brighter than retina"),
            },
        ),
    }
)


def vocabulary_of(modality: str) -> Vocabulary:
    """The vocabulary of a modality, whatever its spelling (``"X-Ray"``, ``"US"``, ``"colonoscopy"``).

    Raises:
        ValueError: no vocabulary of that name; the message lists the known ones.
    """
    aliases = {"us": "ultrasound", "xray": "x-ray", "cxr": "x-ray", "mr": "mri", "colonoscopy": "endoscopy"}
    name = modality.strip().lower()
    name = aliases.get(name, name)
    if name not in VOCABULARIES:
        known = ", ".join(sorted(VOCABULARIES))
        raise ValueError(f"modality {modality!r} has no vocabulary; use one of {known}, or pass vocabulary=Vocabulary(...)")
    return VOCABULARIES[name]


def outline_words(text: str) -> tuple[str, str]:
    """The shape ("round", "oval", "irregular") and the margin ("spiculated", "lobulated") that a prompt names; "" for none.

    >>> outline_words("ultrasound of breast, malignant mass, round, microlobulated margin")
    ('round', 'lobulated')
    """
    shape = next((word for word in SHAPE_WORDS if re.search(rf"\b{word}\b", text.lower())), "")
    return shape, next((word for word in MARGIN_WORDS if re.search(rf"{word}\b", text.lower())), "")


def expected_sign(text: str) -> int:
    """-1 if a prompt calls the finding darker than its surroundings, 1 if brighter; 0 if it says neither or both.

    >>> expected_sign("CT of abdomen, renal cell carcinoma, hypodense"), expected_sign("x-ray of chest, consolidation, opaque")
    (-1, 1)
    """
    return bool(re.search(BRIGHT, text.lower())) - bool(re.search(DARK, text.lower()))


def compose_prompt(modality: str, anatomy: str, finding: str, attributes: Sequence[str] = (), template: str = DEFAULT_TEMPLATE) -> str:
    """Fill a template and drop the separators that empty parts leave behind.

    >>> compose_prompt("ultrasound", "breast", "malignant mass", ["irregular", "hypoechoic"])
    'ultrasound of breast, malignant mass, irregular, hypoechoic'
    >>> compose_prompt("MRI", "brain", "glioma")
    'MRI of brain, glioma'
    """
    text = template.format(modality=modality, anatomy=anatomy, finding=finding, attributes=", ".join(attributes))
    return ", ".join(part.strip() for part in text.split(",") if part.strip())
