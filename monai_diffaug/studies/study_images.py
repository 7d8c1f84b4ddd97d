"""The images of a MONAI datalist as the studies use them: 2-D pictures of 8 bits, each with its findings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monai_diffaug.prompts import NORMAL
from monai_diffaug.training.datalist import ANY_VALUE, Entry, read_datalist
from monai_diffaug.training.run_settings import TrainingInputError
from monai_diffaug.training.slice_pictures import pictures_of

__all__ = ["TRAINING", "VALIDATION", "VOLUMES", "StudyData", "StudyImage", "StudyInputError", "read_sections"]

TRAINING, VALIDATION, VOLUMES = "training", "validation", "volumes"


class StudyInputError(TrainingInputError):
    """The datalist lacks what a study needs, or an option cannot be used; the message says what to do."""


@dataclass(frozen=True)
class StudyImage:
    """One picture, or one slice of a volume."""

    image: Tensor  # (C, H, W) uint8, C 1 or 3
    findings: tuple[tuple[str, NDArray[np.bool_]], ...]  # word and mask (H, W) of each
    labelled: NDArray[np.bool_]  # (H, W), everything that is labelled
    whole: str  # finding of the whole image where nothing has an outline, else "normal tissue"
    modality: str
    anatomy: str
    dataset: str  # may be empty
    group: int  # near-duplicates share one, and so do the slices of a volume
    index: int  # "index" of its entry, else the entry's position in the list

    @property
    def is_normal(self) -> bool:
        """Nothing is labelled, and the image as a whole shows nothing either."""
        return self.whole == NORMAL and not self.labelled.any()

    def labelled_within(self, centre_yx: NDArray[np.float64], reach_px: float) -> bool:
        """Something is labelled in the square of twice ``reach_px`` around the centre."""
        top, left = np.maximum(centre_yx - reach_px, 0).astype(int)
        bottom, right = np.ceil(centre_yx + reach_px).astype(int)
        return bool(self.labelled[top:bottom, left:right].any())


@dataclass(frozen=True)
class StudyData:
    """A datalist, and the data sets of it that a study uses."""

    file: Path  # as ``read_datalist`` reads it
    datasets: tuple[str, ...]  # in their order in the file; ("",) where the entries name none
    plane: str = "axial"  # of the slices of volumes
    window: tuple[float, float] | None = None  # see ``pictures_of``

    @classmethod
    def open(
        cls,
        file: Path | str,
        datasets: Sequence[str] = (),
        *,
        preferred: Sequence[str] = (),
        plane: str = "axial",
        window: tuple[float, float] | None = None,
    ) -> StudyData:
        """Use some data sets of a file, each of which must be there; without names those of ``preferred`` that are there, else all.

        A data set that is for training only is left out where others have validation images.

        Raises:
            StudyInputError: no such data set.
            TrainingInputError: the datalist cannot be read.
        """
        file = Path(file).resolve()
        sections = read_sections(file)
        names = tuple(dict.fromkeys(entry.dataset for entries in sections.values() for entry, _ in entries))
        missing = [name for name in datasets if name not in names]
        if missing:
            raise StudyInputError(f"{file} has no data set {missing[0]!r}; it has {', '.join(filter(None, names)) or 'no named ones'}")
        chosen = [name for name in names if name in (datasets or preferred)]
        with_images = (tuple(dict.fromkeys(entry.dataset for entry, _ in sections[section])) for section in (VALIDATION, TRAINING))
        return cls(file, next(filter(None, (tuple(chosen), *with_images)), names), plane, window)

    @property
    def title(self) -> str:
        """The data sets in words."""
        return ", ".join(name.replace("_", " ") or self.file.stem for name in self.datasets)

    @property
    def finding_words(self) -> tuple[str, ...]:
        """The words of all findings, in the order of the file."""
        entries = [entry for listed in read_sections(self.file).values() for entry, _ in listed if entry.dataset in self.datasets]
        return tuple(dict.fromkeys(word for entry in entries for word in entry.findings.values()))

    def only(self, *datasets: str) -> StudyData:
        """The same data, limited to some data sets."""
        return replace(self, datasets=datasets)

    def each(self) -> list[StudyData]:
        """The same data, one data set at a time: those with images in the validation list; StudyInputError where there is none."""
        return [self.only(name) for name in dict.fromkeys(image.dataset for image in self.images())]

    @property
    def is_mixed(self) -> bool:
        """The validation images are with and without lesions, so that lesions can be painted into normal ones."""
        images = self.images()
        return any(image.is_normal for image in images) and any(image.findings for image in images)

    def require_one(self) -> StudyData:
        """The same data; StudyInputError when it has several data sets, for studies in which lesions move from image to image."""
        if len(self.datasets) > 1:
            names = ", ".join(self.datasets)
            raise StudyInputError(f"this study needs one data set, and {self.file} has {names}; choose one with --dataset")
        return self

    def images(self, section: str = VALIDATION) -> list[StudyImage]:
        """The images of one list of the file, of one data set after the other; StudyInputError where there is none."""
        modified = self.file.stat().st_mtime_ns
        images = [image for name in self.datasets for image in _images(self.file, modified, section, name, self.plane, self.window)]
        if not images:
            raise StudyInputError(f'this study needs images in the "{section}" list, and {self.file} has none ({self.title})')
        return images


def read_sections(file: Path) -> dict[str, list[tuple[Entry, dict[str, Any]]]]:
    """The entries of the lists "training", "validation" and "volumes", each with its row in the file; lists that it lacks are empty."""
    entries = {section: read_datalist(file, section=section) for section in (VALIDATION, VOLUMES)}  # raises where this is no datalist
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    entries[TRAINING] = read_datalist(file, section=TRAINING) if content.get(TRAINING) else []
    return {section: list(zip(listed, content.get(section) or [], strict=True)) for section, listed in entries.items()}


def _group_numbers(names: Sequence[str]) -> list[int]:
    """The names as numbers: their own where all are, else in the order of their first use."""
    if all(name.isdigit() for name in names):
        return [int(name) for name in names]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


@lru_cache(maxsize=64)
def _images(
    file: Path, modified: int, section: str, dataset: str, plane: str, window: tuple[float, float] | None
) -> tuple[StudyImage, ...]:
    """The images of one data set; read again when the file is modified."""
    sections = read_sections(file)
    everything = [(name, i, entry, row) for name in (TRAINING, VALIDATION) for i, (entry, row) in enumerate(sections[name])]
    groups = _group_numbers([entry.group or str(entry.image) for *_, entry, _ in everything])
    return tuple(
        image
        for (name, i, entry, row), group in zip(everything, groups, strict=True)
        if name == section and entry.dataset == dataset
        for image in _study_images(entry, group, int(row.get("index", i)), plane, window)
    )


def _study_images(entry: Entry, group: int, index: int, plane: str, window: tuple[float, float] | None) -> Iterator[StudyImage]:
    whole = entry.findings.get(ANY_VALUE, NORMAL) if entry.label is None else NORMAL
    for picture in pictures_of(entry, plane=plane, window=window):
        words = (whole, entry.modality, entry.anatomy, entry.dataset)
        yield StudyImage(picture.image, picture.findings, picture.labelled, *words, group, index)
