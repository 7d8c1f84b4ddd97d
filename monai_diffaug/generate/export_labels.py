"""Class ids of labels that leave the package: their names, and the map to the ids 0, 1, 2, ... that training frameworks require."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.files.image_file import read_picture, write_picture
from monai_diffaug.files.picture import Picture
from monai_diffaug.files.upright_pictures import class_ids
from monai_diffaug.generate.export_cases import CaseTable, ExportError
from monai_diffaug.masks.label_file import ids_of_file
from monai_diffaug.prompts import NORMAL

__all__ = ["BACKGROUND", "IGNORE", "ClassTable", "class_table", "read_label", "write_ids"]

BACKGROUND, IGNORE = "background", "ignore"
LOSSY_SUFFIXES = (".jpg", ".jpeg")
MOST_NAMES = 3  # findings that one class id may stand for in its name


@dataclass(frozen=True)
class ClassTable:
    """Names and new ids of the classes.

    Attributes:
        names: name of each class by its new id, from 0; the last one is "ignore" if there is an ignored class.
        new_id: id in the files -> new id.

    >>> table = ClassTable(("background", "mass"), {0: 0, 4: 1})
    >>> table.is_identity, table.apply(np.array([0, 4, 4]))
    (False, array([0, 1, 1]))
    """

    names: tuple[str, ...]
    new_id: Mapping[int, int]

    @property
    def is_identity(self) -> bool:
        """The ids of the files are kept."""
        return all(old == new for old, new in self.new_id.items())

    def apply(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """New ids of an array of ids in the files.

        Raises:
            KeyError: an id that the table does not have.
        """
        values, places = np.unique(ids, return_inverse=True)
        return np.array([self.new_id[int(value)] for value in values], np.int64)[places].reshape(ids.shape)


def read_label(path: Path) -> tuple[NDArray[np.int64], Picture]:
    """(1, H, W[, D]) class ids of a label file, and the file.

    Raises:
        ImageFileError: the file cannot be read, or holds fractional values.
        ExportError: several channels, or a JPEG.
    """
    picture = read_picture(path, layers=True, convert=class_ids)
    if picture.suffix in LOSSY_SUFFIXES:
        raise ExportError(f"label {path} is a JPEG, whose compression changes class ids; save it as PNG first")
    ids = ids_of_file(picture)
    if ids.ndim == 4 and ids.shape[0] > 1:
        raise ExportError(f"label {path} has {ids.shape[0]} channels; give one with class ids, e.g. the argmax of one channel per class")
    ids = ids.max(axis=0, keepdims=True)
    return ids, picture


def write_ids(ids: NDArray[np.int64], like: Picture, path: Path) -> None:
    """Write class ids (1, H, W[, D]) as whole numbers without scaling, in the smallest unsigned type, on the grid of an image."""
    largest = int(ids.max(initial=0))
    write_picture(ids, like, path, dtype=np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.int32)


def class_table(table: CaseTable, *, ignore: int | None = None, consecutive: bool = True) -> ClassTable:
    """Classes of all labels and of the names in the datalist and the records.

    Args:
        table: the cases; each label file is read.
        ignore: class id that training leaves out; it becomes the last one.
        consecutive: number the classes 0, 1, 2, ... in the order of their ids; otherwise gaps are refused.

    Raises:
        ExportError: a negative id, or gaps between the ids without ``consecutive``.
    """
    present: set[int] = set()
    for case in table.cases:
        if case.label is not None:
            present |= {int(value) for value in np.unique(read_label(case.label)[0])}
            if min(present) < 0:
                raise ExportError(f"label {case.label} has the class id {min(present)}; number the classes from 0")
    words = _names(table)
    order = [0, *sorted((present | words.keys()) - {0, ignore})]
    if ignore is not None:
        if ignore == 0:
            raise ExportError("the class 0 is the background and cannot be ignored")
        order.append(ignore)
    new_id = {old: new for new, old in enumerate(order)}
    if not consecutive and any(old != new for old, new in new_id.items()):
        raise ExportError(f"the class ids are {sorted(order)}, not 0, 1, 2, ... (an ignored class last); export with renumbered classes")
    names = [BACKGROUND, *(words.get(old) or f"class {old}" for old in order[1:])]
    if ignore is not None:
        names[-1] = IGNORE
    return ClassTable(tuple(_unique(names)), new_id)


def _unique(names: list[str]) -> list[str]:
    """A name that occurs twice gets its number."""
    return [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names)]


def _names(table: CaseTable) -> dict[int, str]:
    """Class id -> its name: all findings that the id stands for in the datalist and in the records."""
    words: dict[int, list[str]] = {}
    top = table.datalist.get("labels")
    if isinstance(top, list):
        top = {str(index): word for index, word in enumerate(top)}
    for value, word in _single(top if isinstance(top, Mapping) else {}):
        words[value] = [word]
    named = set(words)
    findings: list[tuple[int, str]] = []
    for case in table.real:
        finding = case.words.get("finding") or table.datalist.get("finding")
        if isinstance(finding, Mapping):
            findings += _single(finding)
        elif isinstance(finding, str) and finding != NORMAL:
            findings.append((1, finding))  # a word for all that is labelled, as a rule of one class
    findings += [
        (case.record.label_value, case.record.finding)
        for case in table.synthetic
        if case.record is not None and case.record.label_value > 0 and case.record.finding
    ]
    for value, word in dict.fromkeys(findings):
        if value not in named and word not in words.setdefault(value, []):
            words[value].append(word)
    return {value: " or ".join(several) if len(several) <= MOST_NAMES else f"class {value}" for value, several in words.items()}


def _single(table: Mapping[Any, Any]) -> Iterable[tuple[int, str]]:
    """Names of single class ids; unions such as "1,2" name no class, and 0 is the background."""
    return [
        (int(key), word) for key, word in table.items() if str(key).strip().isdecimal() and int(key) > 0 and isinstance(word, str) and word
    ]
