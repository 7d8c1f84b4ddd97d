"""Read a MONAI datalist: images, labels and the words for them; the same for users' data and for those of the embedded models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diffaug.prompts import NORMAL, vocabulary_of
from monai_diffaug.training.run_settings import TrainingInputError

__all__ = ["ANY_VALUE", "Entry", "LabelValues", "Words", "mask_of", "read_datalist"]

WORD_KEYS = ("modality", "anatomy", "finding")
BACKGROUND = "background"

LabelValues = tuple[int, ...]  # the label values that one finding has; (1, 2) is the union of both
ANY_VALUE: LabelValues = ()  # every value above 0


@dataclass(frozen=True)
class Words:
    """Default words for entries that have none; empty means no default."""

    modality: str = ""
    anatomy: str = ""
    finding: str = ""


@dataclass(frozen=True)
class Entry:
    """One image of a datalist."""

    image: Path  # file, or folder of a DICOM series
    label: Path | None  # class ids on the same grid; None for normal tissue, and for a finding that has no outline
    findings: Mapping[LabelValues, str]  # empty for normal tissue
    modality: str  # words of the captions; empty where unknown, which only an entry with a ``prompt`` may have
    anatomy: str
    prompt: str = ""  # caption of the image, used as it is; empty when captions are composed
    dataset: str = ""  # training draws all data sets equally often
    group: str = ""  # patient, or near-duplicates, for splits

    @property
    def is_normal(self) -> bool:
        return not self.findings


def mask_of(ids: Tensor, values: LabelValues) -> Tensor:
    """Bool mask, in the shape of the class ids, of some label values.

    >>> mask_of(torch.tensor([0, 1, 2, 3]), (1, 2))
    tensor([False,  True,  True, False])
    >>> mask_of(torch.tensor([0, 1, 2, 3]), ANY_VALUE)
    tensor([False,  True,  True,  True])
    """
    return torch.isin(ids, torch.tensor(values, device=ids.device)) if values else ids > 0


def read_datalist(path: Path | str, words: Words | None = None, section: str = "training") -> list[Entry]:
    """Read one section of ``{"training": [{"image": ..., "label": ...}, ...], "validation": [...]}``.

    Paths are relative to the file. The keys of an entry:

    - "image", "label": paths. A finding without an outline, e.g. a whole lung, has ``"label": null``.
    - "finding": a word for all voxels above 0, or a table ``{"1": "benign mass", "2": "malignant mass"}``. The key "1,2" is the union
      of two values: ``{"1,2": "optic disc", "2": "optic cup"}``. "normal tissue" marks an image without a lesion; it needs no label.
    - "modality", "anatomy": the other words of a caption. Or "prompt": the caption as it is.
    - "dataset", "group": see ``Entry``. Optional.

    Words that an entry lacks come from ``words``, then from the same keys at the top of the file, where the "modality" and "labels"
    tables of the Medical Segmentation Decathlon are read too. "dataset" may stand at the top as well.

    Args:
        path: the JSON file.
        words: defaults for entries without words.
        section: "training" or "validation"; a missing "validation" is an empty list.

    Raises:
        TrainingInputError: no such file, not JSON, a missing or unknown key, a missing image or label file; names the entry.
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
    words = words or Words()
    defaults = {key: getattr(words, key) or _top_level(content, key) for key in WORD_KEYS}
    defaults["dataset"] = content.get("dataset", "")
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
        findings = {ANY_VALUE: prompt}
    try:
        vocabulary_of(word["modality"])
    except ValueError as error:
        if not prompt:
            known = str(error).split(", or pass ")[0]
            raise TrainingInputError(f'{name}: {known}; or give the entry a "prompt"') from error
        word["modality"] = ""  # the tissue around the lesion is captioned without it
    label = row.get("label")
    has_no_outline = "label" in row and label is None and list(findings) == [ANY_VALUE]
    if findings and not isinstance(label, str) and not has_no_outline:
        raise TrainingInputError(
            f'{name}: an entry needs "label", one path; only entries with "finding": "{NORMAL}" do without (it has {", ".join(row)})'
        )
    origin = {key: str(row.get(key, defaults.get(key, ""))) for key in ("dataset", "group")}
    return Entry(
        image=_existing(path, name, "image", row["image"]),
        label=_existing(path, name, "label", label) if findings and isinstance(label, str) else None,
        findings=findings,
        modality=word["modality"],
        anatomy=word["anatomy"],
        prompt=prompt,
        **origin,
    )


def _findings(name: str, words: Any) -> dict[LabelValues, str]:
    if isinstance(words, str):
        return {ANY_VALUE: words} if words and words != NORMAL else {}
    if not isinstance(words, Mapping):
        raise TrainingInputError(f'{name}: "finding" must be a word or {{"1": word, ...}}, got {words!r}')
    try:
        table = {tuple(int(value) for value in str(key).split(",")): word for key, word in words.items()}
    except ValueError as error:
        keys = "; ".join(map(str, words))
        raise TrainingInputError(f'{name}: the keys of "finding" (or "labels") must be label values, got {keys}') from error
    table = {values: word for values, word in table.items() if values != (0,)}
    if any(0 in values for values in table):
        raise TrainingInputError(f"{name}: 0 is the background and in no union, got {'; '.join(map(str, words))}")
    wordless = [values for values, word in table.items() if not (isinstance(word, str) and word)]
    if wordless:
        value = ",".join(map(str, wordless[0]))
        raise TrainingInputError(f'{name}: "finding" has no word for label value {value}; leave the value out, or name it')
    return table


def _existing(path: Path, name: str, role: str, text: str) -> Path:
    file = path.parent / Path(text).expanduser()
    if not file.exists():
        raise TrainingInputError(f"{name}: {role} {file} does not exist")
    return file
