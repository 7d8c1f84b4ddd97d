"""The cases of a data set with synthetic images: the real ones of a datalist, the accepted results of a run, and their folds."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffaug.generate.export_splits import Split, assign_folds, one_fold_each, splits_of
from monai_diffaug.generate.job_record import JobRecord
from monai_diffaug.generate.jobs import job_name
from monai_diffaug.generate.run_folder import Run
from monai_diffaug.prompts import NORMAL

__all__ = ["Case", "CaseTable", "ExportError", "LeakError", "datalist_of", "read_cases", "source_of_donor"]

TRAINING, VALIDATION = "training", "validation"
DEFAULT_FOLDS = 5  # as nnU-Net


class ExportError(ValueError):
    """A run cannot be exported as requested; the message says why and what to do."""


class LeakError(ExportError):
    """A group of the datalist is in several folds or lists."""


@dataclass(frozen=True)
class Case:
    """One image with its label.

    Attributes:
        name: letters, digits, "-" and "_"; unique in the data set.
        images: one file, or one per channel.
        label: file with class ids; None means background only.
        groups: group of a real case; of a synthetic case those of its source and of its lesion donor.
        sources: ids in the datalist: its own of a real case; of a synthetic case those of its source and of its lesion donor.
        words: "finding", "modality", "anatomy", "prompt" as far as known.
        mask: repainted region of a synthetic case.
        record: of a synthetic case.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    groups: tuple[str, ...]
    sources: tuple[str, ...]
    words: Mapping[str, Any] = field(default_factory=dict)
    mask: Path | None = None
    record: JobRecord | None = None

    @property
    def is_synthetic(self) -> bool:
        return self.record is not None

    @property
    def result(self) -> JobRecord:
        """The record of a synthetic case; ValueError for a real one."""
        if self.record is None:
            raise ValueError(f"{self.name} is a real case and has no record")
        return self.record


@dataclass(frozen=True)
class CaseTable:
    """Real and synthetic cases with their folds.

    Attributes:
        real, synthetic: the cases.
        fold_of: group -> fold in which its real cases validate; None for groups that always train.
        splits: training and validation cases of each fold.
        datalist: content of the datalist, for its "labels" and "modality" tables.
        datalist_path: of the file.
        without_label: number of real entries that were left out, because they show a finding and have no label.
    """

    real: tuple[Case, ...]
    synthetic: tuple[Case, ...]
    fold_of: Mapping[str, int | None]
    splits: tuple[Split, ...]
    datalist: Mapping[str, Any]
    datalist_path: Path
    without_label: int = 0

    @property
    def cases(self) -> tuple[Case, ...]:
        """Real cases, then synthetic ones."""
        return self.real + self.synthetic

    @property
    def never_training(self) -> tuple[str, ...]:
        """Synthetic cases that may train in no fold: the source or the donor never trains, or both validate in all folds between them."""
        trained = {name for split in self.splits for name in split.training}
        return tuple(case.name for case in self.synthetic if case.name not in trained)


def datalist_of(run: Run, path: Path | None) -> Path:
    """The datalist of an export or audit: the named one, else that of the run.

    Raises:
        ExportError: no such file.
    """
    datalist = Path(str(run.settings.get("datalist", ""))) if path is None else path
    if not datalist.is_file():
        raise ExportError(f"datalist {datalist}: no such file; name the run's datalist with --data")
    return datalist


def read_cases(run: Run, datalist: Path, *, section: str = TRAINING, folds: int = DEFAULT_FOLDS) -> CaseTable:
    """Read the real cases of a datalist and the accepted results of a run.

    The folds are, in this order: the "fold" of the entries; one fold with the list "validation" of the file; else ``folds`` folds of whole
    groups. Groups of other lists of the file ("test", ...) never train.

    Raises:
        ExportError: no datalist, an entry without an image or with a missing file, some entries with and some without a fold, a group in
            several folds or lists, or a source that the datalist does not have.
    """
    content = _content(datalist)
    rows = _rows(content, section, datalist)
    rows += _rows(content, VALIDATION, datalist) if VALIDATION in content and section == TRAINING and not _has_folds(rows, datalist) else []
    real: list[Case] = []
    groups_of: dict[str, str] = {}
    dataset = str(content.get("dataset", ""))
    fold_of = _fold_of(rows, content, folds, datalist)
    without_label = 0
    for where, row in rows:
        name = f"{datalist}, {where}"
        groups_of |= dict.fromkeys((_files(row, name)[0], _id_of(row, name)), _group_of(row, name, dataset))
        label = row.get("label")
        if not label and row.get("finding") != NORMAL:
            without_label += 1
            continue
        real.append(
            Case(
                name=_case_name(row, name),
                images=tuple(_existing(datalist, name, file) for file in _files(row, name)),
                label=_existing(datalist, name, str(label)) if label else None,
                groups=(_group_of(row, name, dataset),),
                sources=(_id_of(row, name),),
                words={key: row[key] for key in ("finding", "modality", "anatomy", "prompt") if row.get(key)},
            )
        )
    by_id = {source: row for _, row in rows for source in [_id_of(row, "")]}
    elsewhere = {_id_of(row, key) for key in content for row in _dictionaries(content[key])}
    synthetic = [_result(run, record, groups_of, by_id, elsewhere, datalist) for record in run.accepted]
    names = [case.name for case in (*real, *synthetic)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ExportError(f"{datalist}: two cases would be called {twice}; give the entries different ids")
    count = len({fold for fold in fold_of.values() if fold is not None})
    splits = splits_of({c.name: c.groups[0] for c in real}, {c.name: c.groups for c in synthetic}, fold_of, count)
    return CaseTable(tuple(real), tuple(synthetic), fold_of, splits, content, datalist, without_label)


def _result(
    run: Run, record: JobRecord, groups_of: Mapping[str, str], by_id: Mapping[str, Any], elsewhere: set[str], datalist: Path
) -> Case:
    """A synthetic case; groups come from the datalist where it has the source or donor, else from the record."""
    source, donor = record.source or {}, record.donor
    group = groups_of.get(record.source_id, str(source.get("group", "")))
    if record.source_id not in groups_of and record.source_id not in elsewhere and group not in set(groups_of.values()):
        raise ExportError(f"{datalist} has no entry for the source {record.source_id} of {record.job}; name the run's datalist with --data")
    groups, sources = [group], [record.source_id]
    if donor is not None:
        donor_source = source_of_donor(str(donor["id"]), groups_of)
        groups.append(groups_of.get(donor_source, str(donor["group"])))
        sources.append(donor_source)
    files = record.files or {}
    missing = [role for role in ("image", "label") if role not in files or not run.file(record, role).is_file()]
    if missing:
        raise ExportError(f"{record.job} has no {' and no '.join(missing)}; see `monai-diffaug audit {run.folder}`")
    row = by_id.get(record.source_id, {})
    words = {key: row[key] for key in ("modality", "anatomy") if row.get(key)}
    words |= {key: value for key, value in (("finding", record.finding), ("prompt", record.prompt)) if value}
    return Case(
        name=_dotless(record.job),
        images=(run.file(record, "image"),),
        label=run.file(record, "label"),
        groups=tuple(dict.fromkeys(groups)),
        sources=tuple(dict.fromkeys(sources)),
        words=words,
        mask=run.file(record, "mask") if "mask" in files else None,
        record=record,
    )


def source_of_donor(donor: str, known: Container[str]) -> str:
    """Image that a lesion donor is in: a donor of a ``DonorBank`` is named after its image, with "#" and a number.

    >>> source_of_donor("images/a.png#2", {"images/a.png"}), source_of_donor("other#2", {"images/a.png"})
    ('images/a.png', 'other#2')
    """
    image, mark, number = donor.rpartition("#")
    return image if mark and number.isdecimal() and image in known else donor


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ExportError(f"datalist {path}: no such file") from error
    except ValueError as error:
        raise ExportError(f"datalist {path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f'datalist {path} must be a JSON object with a "training" list, got a {type(content).__name__}')
    return content


def _dictionaries(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict) and row.get("image")] if isinstance(value, list) else []


def _rows(content: Mapping[str, Any], section: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = content.get(section)
    if not isinstance(rows, list) or (section != VALIDATION and not rows):
        raise ExportError(f'{path}: no list "{section}"; it has {", ".join(key for key in content if isinstance(content[key], list))}')
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ExportError(f'{path}, {section}[{index}]: an entry needs "image" and "label"; it is a {type(row).__name__}')
    return [(f"{section}[{index}]", row) for index, row in enumerate(rows)]


def _files(row: Mapping[str, Any], name: str) -> list[str]:
    files = row.get("image")
    files = [files] if isinstance(files, str) else files
    if not (isinstance(files, list) and files and all(isinstance(file, str) for file in files)):
        raise ExportError(f'{name}: an entry needs "image", one path or one per channel; it has {", ".join(row) or "nothing"}')
    return files


def _id_of(row: Mapping[str, Any], name: str) -> str:
    return str(row["id"]) if row.get("id") is not None else _files(row, name)[0]


def _group_of(row: Mapping[str, Any], name: str, dataset: str = "") -> str:
    """Group of an entry: the same patient number in two data sets is two groups."""
    group = next((row[key] for key in ("group", "patient") if row.get(key) not in (None, "")), None)
    dataset = str(row.get("dataset") or dataset)
    return _id_of(row, name) if group is None else f"{dataset}/{group}" if dataset else str(group)


def _existing(datalist: Path, name: str, text: str) -> Path:
    file = datalist.parent / Path(text).expanduser()
    if not file.exists():
        raise ExportError(f"{name}: {file} does not exist")
    return file.absolute()


def _case_name(row: Mapping[str, Any], name: str) -> str:
    """Name of a real case: that of the results made of it, without the number of the copy."""
    return _dotless(job_name(_id_of(row, name), _files(row, name)[0], 0).rpartition("-")[0])


def _dotless(job: str) -> str:
    """WebDataset ends the name of a case at its first dot."""
    return job.replace(".", "-")


def _has_folds(rows: Sequence[tuple[str, Mapping[str, Any]]], path: Path) -> bool:
    having = [where for where, row in rows if row.get("fold") is not None]
    if having and len(having) < len(rows):
        lacking = next(where for where, row in rows if row.get("fold") is None)
        raise ExportError(f'{path}: {having[0]} has a "fold" and {lacking} has none; give all entries a fold, or none')
    return bool(having)


def _fold_of(rows: Sequence[tuple[str, Mapping[str, Any]]], content: Mapping[str, Any], count: int, path: Path) -> dict[str, int | None]:
    """Group -> fold, from the entries, from the list "validation", or spread."""
    dataset = str(content.get("dataset", ""))
    groups = [_group_of(row, f"{path}, {where}", dataset) for where, row in rows]
    has_folds, validates = _has_folds(rows, path), [where.startswith(VALIDATION) for where, _ in rows]
    try:
        if has_folds:
            fold_of = one_fold_each((group, int(row["fold"])) for group, (_, row) in zip(groups, rows, strict=True))
        elif any(validates):
            fold_of = one_fold_each((group, 0 if last else None) for group, last in zip(groups, validates, strict=True))
        else:
            fold_of = assign_folds(groups, count)
    except ValueError as error:
        raise (LeakError if has_folds or any(validates) else ExportError)(f"{path}: {error}") from error
    used = {where.split("[")[0] for where, _ in rows}
    for key in content.keys() - used:
        both = [row for row in _dictionaries(content[key]) if _group_of(row, key, dataset) in fold_of]
        if both:
            raise LeakError(
                f"{path}: the group {_group_of(both[0], key, dataset)!r} is in the list {key!r} and in {' and '.join(sorted(used))}; "
                "a test on it would not be independent of the training; take it out of one list"
            )
    return fold_of
