"""Read a MONAI datalist: which images and labels there are, and the words for what they show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_diffaug.prompts import NORMAL, vocabulary_of
from monai_diffaug.training.run_settings import TrainingInputError

__all__ = ["Entry", "Words", "read_datalist"]

WORD_KEYS = ("modality", "anatomy", "finding")
BACKGROUND = "background"


@dataclass(frozen=True)
class Words:
    """Words that hold for entries which do not bring their own; empty means not given."""

    modality: str = ""
    anatomy: str = ""
    finding: str = ""


@dataclass(frozen=True)
class Entry:
    """One image of a datalist.

    Attributes:
        image: file, or folder of a DICOM series.
        label: class ids on the same grid; None for an image of normal tissue.
        findings: label value -> what it is; the value None stands for all voxels above 0. Empty for normal tissue.
        modality, anatomy: words of the captions; may be empty, or unknown and then left empty, where there is a ``prompt``.
        prompt: caption as it is, empty when captions are composed.
    """

    image: Path
    label: Path | None
    findings: Mapping[int | None, str]
    modality: str
    anatomy: str
    prompt: str = ""

    @property
    def is_normal(self) -> bool:
        return not self.findings


def read_datalist(path: Path | str, words: Words | None = None, section: str = "training") -> list[Entry]:
    """The entries of one section of ``{"training": [{"image": ..., "label": ...}, ...], "validation": [...]}``.

    Paths are relative to the file. An entry may have "prompt" (its caption), or "modality", "anatomy" and "finding"; "finding" is
    a word for all voxels above 0, or ``{"1": "benign mass", "2": "malignant mass"}``. What an entry lacks comes from ``words``,
    then from the same keys at the top of the file, where the Decathlon's "modality" and "labels" tables are read too. "normal tissue"
    as finding marks an image without lesion, which needs no label.

    Args:
        path: the JSON file.
        words: defaults for entries without words.
        section: "training" or "validation"; a missing "validation" is an empty list.

    Raises:
        TrainingInputError: no such file, not JSON, a missing or unknown key, a file that is not there; names the entry.
    """
    path = Path(path)
    content = _content(path)
    if section not in content:
        if section == "training":
            raise TrainingInputError(f'{path}: no "training" list; expected {{"training": [{{"image": ..., "label": ...}}, ...]}}')
        return []
    rows = content[section]
    if not isinstance(rows, list) or (section == "training" and not rows):
        raise TrainingInputError(f'{path}: "{section}" must be a list of entries with "image" and "label"')
    given = words or Words()
    defaults = {key: getattr(given, key) or _top_level(content, key) for key in WORD_KEYS}
    return [_entry(path, f"{section}[{index}]", row, defaults) for index, row in enumerate(rows)]


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TrainingInputError(f"datalist {path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # with or without the mark that editors on Windows put first
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TrainingInputError(f"datalist {path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise TrainingInputError(f'datalist {path} must be a JSON object with a "training" list, got a {type(content).__name__}')
    return content


def _top_level(content: Mapping[str, Any], key: str) -> Any:
    """A word or table at the top of the file; the Decathlon keys modality by channel and names the findings "labels"."""
    if key == "finding":
        labels = content.get("labels")
        if isinstance(labels, list):
            labels = {str(k): word for k, word in enumerate(labels)}
        if isinstance(labels, Mapping):
            labels = {k: word for k, word in labels.items() if word != BACKGROUND}
        value = content.get("finding") or labels or ""
    else:
        value = content.get(key, "")
        if isinstance(value, Mapping):
            value = next(iter(value.values()), "")
    return value


def _entry(path: Path, where: str, row: Any, defaults: Mapping[str, Any]) -> Entry:
    name = f"{path}, {where}"
    if not isinstance(row, Mapping) or not isinstance(row.get("image"), str):
        got = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
        raise TrainingInputError(f'{name}: an entry needs "image", one path; it has {got or "nothing"}')
    word = {key: row.get(key) or defaults[key] for key in WORD_KEYS}
    prompt = row.get("prompt") or ""
    if not all(isinstance(value, str) for value in (word["modality"], word["anatomy"], prompt)):
        raise TrainingInputError(f'{name}: "modality", "anatomy" and "prompt" must be words')
    findings = _findings(name, word["finding"])
    if not prompt:
        missing = [key for key in ("modality", "anatomy") if not word[key]] + ([] if word["finding"] else ["finding"])
        if missing:
            raise TrainingInputError(
                f"{name}: no words for the caption: {', '.join(missing)} missing; add them to the entry, to the top of the datalist or as "
                f'--{missing[0]}, or give the entry a "prompt"'
            )
    elif not findings and word["finding"] != NORMAL:
        findings = {None: prompt}
    try:
        vocabulary_of(word["modality"])
    except ValueError as error:
        if not prompt:
            known = str(error).split(", or pass ")[0]
            raise TrainingInputError(f'{name}: {known}; or give the entry a "prompt"') from error
        word["modality"] = ""  # the tissue beside the lesion is captioned without it
    label = row.get("label")
    if findings and not isinstance(label, str):
        raise TrainingInputError(
            f'{name}: an entry needs "label", one path; only entries with "finding": "{NORMAL}" do without (it has {", ".join(row)})'
        )
    return Entry(
        image=_existing(path, name, "image", row["image"]),
        label=_existing(path, name, "label", label) if findings and isinstance(label, str) else None,
        findings=findings,
        modality=word["modality"],
        anatomy=word["anatomy"],
        prompt=prompt,
    )


def _findings(name: str, given: Any) -> dict[int | None, str]:
    if isinstance(given, str):
        return {None: given} if given and given != NORMAL else {}
    if not isinstance(given, Mapping):
        raise TrainingInputError(f'{name}: "finding" must be a word or {{"1": word, ...}}, got {given!r}')
    try:
        table: dict[int | None, str] = {int(value): finding for value, finding in given.items()}
    except ValueError as error:
        told = ", ".join(map(str, given))
        raise TrainingInputError(f'{name}: the keys of "finding" (or "labels") must be label values, got {told}') from error
    wordless = [value for value, finding in table.items() if value != 0 and not (isinstance(finding, str) and finding)]
    if wordless:
        raise TrainingInputError(f'{name}: "finding" has no word for label value {wordless[0]}; leave the value out, or name it')
    return {value: finding for value, finding in table.items() if value != 0}


def _existing(path: Path, name: str, role: str, text: str) -> Path:
    file = path.parent / Path(text).expanduser()
    if not file.exists():
        raise TrainingInputError(f"{name}: {role} {file} does not exist")
    return file
