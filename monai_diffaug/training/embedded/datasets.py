"""The real images the embedded models are trained on, split once by group into training and validation."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["SOURCES", "Sample", "Source", "data_root", "load_samples", "names_without"]

SPLIT_SEED = 20250101
VALIDATION_FRACTION = 0.2


@dataclass(frozen=True)
class Source:
    """One ``.npz`` of the data folder and the words its images and labels are described with."""

    name: str
    modality: str
    anatomy: str
    findings: Mapping[int, str] = field(default_factory=dict)


SOURCES: tuple[Source, ...] = (
    Source("breast_ultrasound", "ultrasound", "breast", {1: "benign mass", 2: "malignant mass"}),
    Source("colonoscopy_polyp", "endoscopy", "colon", {1: "polyp"}),
    Source(
        "endoscopy_disease",
        "endoscopy",
        "gastrointestinal tract",
        {1: "Barrett's oesophagus", 2: "cancer", 3: "high-grade dysplasia", 4: "polyp", 5: "suspicious lesion"},
    ),
    Source("fundus_disc_cup", "fundus", "retina", {1: "optic disc", 2: "optic cup"}),
    Source("chest_xray", "x-ray", "chest"),
    Source("brain_ct_haemorrhage", "ct", "brain", {1: "intracranial haemorrhage"}),
    Source(
        "brain_ct_haemorrhage_types",
        "ct",
        "brain",
        {
            1: "epidural haematoma",
            2: "intraparenchymal haemorrhage",
            3: "intraventricular haemorrhage",
            4: "subarachnoid haemorrhage",
            5: "subdural haematoma",
        },
    ),
    Source("brain_ct_stroke", "ct", "brain", {1: "haemorrhagic stroke", 2: "ischaemic stroke"}),
    Source("brain_mri_tumour", "mri", "brain", {1: "meningioma", 2: "glioma", 3: "pituitary tumour"}),
    Source("prostate_mri", "mri", "prostate", {1: "prostate"}),
    Source("spleen_ct", "ct", "abdomen", {1: "spleen"}),
    Source("spine_mri", "mri", "spine", {1: "vertebra", 2: "disc or spinal canal"}),
)


def names_without(left_out: Collection[str]) -> tuple[str, ...]:
    """Names of the sources except those ``left_out``: for models that must not have seen a data set.

    Raises:
        ValueError: no such source.
    """
    names = tuple(source.name for source in SOURCES)
    unknown = sorted(set(left_out) - set(names))
    if unknown:
        raise ValueError(f"no data set {unknown[0]!r} to leave out; the data sets are {', '.join(names)}")
    return tuple(name for name in names if name not in left_out)


@dataclass(frozen=True)
class Sample:
    """One image: ``image`` (256, 256, 3) uint8, ``label`` (256, 256) uint8 class ids, ``group`` of near-duplicates."""

    source: Source
    index: int
    group: int
    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    image_finding: str

    def masks(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Each finding in the image with its mask; the optic disc is rim and cup together."""
        for value, finding in self.source.findings.items():
            mask = self.label >= value if self.source.name == "fundus_disc_cup" else self.label == value
            if mask.any():
                yield finding, mask


def data_root() -> Path | None:
    """``$MONAI_DIFFAUG_DATA``, else ``../shared/data`` beside the project, else None."""
    named = os.environ.get("MONAI_DIFFAUG_DATA")
    candidates = [Path(named)] if named else [Path(__file__).resolve().parents[4] / "shared" / "data", Path("../shared/data")]
    return next((folder for folder in candidates if folder.is_dir()), None)


def _validation_groups(groups: NDArray[np.int64], strata: NDArray[np.int64]) -> set[int]:
    """A fifth of the groups of each class, drawn with a fixed seed: the same split on every machine."""
    rng = np.random.RandomState(SPLIT_SEED)
    stratum_of = {int(g): int(strata[groups == g].max()) for g in np.unique(groups)}
    chosen: set[int] = set()
    for stratum in sorted(set(stratum_of.values())):
        members = sorted(g for g, s in stratum_of.items() if s == stratum)
        count = max(1, round(VALIDATION_FRACTION * len(members)))
        chosen.update(int(g) for g in rng.permutation(members)[:count])
    return chosen


@lru_cache(maxsize=64)
def load_samples(name: str, split: str, root: str | None = None) -> tuple[Sample, ...]:
    """All samples of one source and one split.

    Args:
        name: a name in ``SOURCES``.
        split: "train" or "validation"; a group is wholly in one of them.
        root: folder of the ``.npz`` files; default ``data_root()``.

    Raises:
        FileNotFoundError: the data folder or the file is missing.
        ValueError: unknown split.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split must be 'train' or 'validation', got {split!r}")
    folder = Path(root) if root else data_root()
    if folder is None or not (folder / f"{name}.npz").is_file():
        raise FileNotFoundError(f"{name}.npz not found under {folder}; set MONAI_DIFFAUG_DATA to the folder of the .npz files")
    source = next(s for s in SOURCES if s.name == name)
    with np.load(folder / f"{name}.npz") as archive:
        images = archive["images"]
        classes = archive["classes"]
        image_class = archive["image_class"] if "image_class" in archive else None
        labels = archive["labels"] if "labels" in archive else np.zeros(images.shape[:3], np.uint8)
        groups = archive["groups"] if "groups" in archive else np.arange(len(images))
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    strata = image_class if image_class is not None else labels.reshape(len(labels), -1).max(1)
    held = _validation_groups(groups.astype(np.int64), strata.astype(np.int64))
    return tuple(
        Sample(source, i, int(groups[i]), images[i], labels[i], str(classes[image_class[i]]) if image_class is not None else "")
        for i in range(len(images))
        if (int(groups[i]) in held) == (split == "validation")
    )
