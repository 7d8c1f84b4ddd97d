"""Default windows of CT in Hounsfield units, by the anatomy that a prompt names; percentiles would run from air or padding to bone."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["CT_WINDOWS", "SOFT_TISSUE", "ct_window", "is_in_hu"]

SOFT_TISSUE = (-160.0, 240.0)
# Usual reading windows, low and high in HU (width and level of radiology teaching: brain W80 L40, lung W1500 L-600, bone W1800 L400,
# abdomen W400 L40); the first row whose word stands in the prompt counts
CT_WINDOWS: Mapping[str, tuple[tuple[float, float], tuple[str, ...]]] = {
    "bone": ((-500.0, 1300.0), ("bone", "vertebra", "spine", "skull")),
    "brain": ((0.0, 80.0), ("brain", "head", "intracranial")),
    "mediastinum": (SOFT_TISSUE, ("mediastinum", "mediastinal", "heart", "aorta")),
    "lung": ((-1350.0, 150.0), ("lung", "chest", "thorax", "pulmonary")),
    "soft tissue": (SOFT_TISSUE, ()),  # abdomen, pelvis, and CT of an anatomy that is not named
}
CT = re.compile(r"\bCT\b|\bcomputed tomography\b", re.IGNORECASE)
OTHER_MODALITY = re.compile(r"\b(MRI?|ultrasound|x-ray|radiograph|endoscopy|fundus|PET|microscopy)\b", re.IGNORECASE)
AIR_HU, FAT_HU = -900.0, -150.0  # an image that goes below: air of a scan; below fat, only a unit with negative numbers does so


def is_in_hu(lowest: float, prompt: str = "") -> bool:
    """Whether an image is CT in Hounsfield units: by its prompt, or by voxels as dark as air where no prompt names another modality.

    Args:
        lowest: least value of the image, without a constant border.
        prompt: of the edit; empty where there is none.

    >>> is_in_hu(-1000.0), is_in_hu(-1000.0, "MRI of brain, glioma"), is_in_hu(-200.0, "CT of abdomen, cyst"), is_in_hu(0.0, "CT of brain")
    (True, False, True, False)
    """
    if CT.search(prompt):
        return lowest <= FAT_HU
    return lowest <= AIR_HU and not OTHER_MODALITY.search(prompt)


def ct_window(prompt: str = "") -> tuple[float, float]:
    """(low, high) in HU for the anatomy that a prompt names; soft tissue where it names none.

    >>> ct_window("CT of brain, ischaemic stroke"), ct_window("CT of chest, lung nodule"), ct_window("CT of pelvis, lymph node")
    ((0.0, 80.0), (-1350.0, 150.0), (-160.0, 240.0))
    """
    text = prompt.lower()
    for window, words in CT_WINDOWS.values():
        if any(re.search(rf"\b{re.escape(word)}", text) for word in words):
            return window
    return SOFT_TISSUE
