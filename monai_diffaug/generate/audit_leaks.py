"""Leaks: groups that are in several splits, donors from another fold, and exports whose splits break the leakage rule."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_diffaug.generate.audit_files import Fault
from monai_diffaug.generate.export_cases import TRAINING, VALIDATION, source_of_donor
from monai_diffaug.generate.export_folder import read_export
from monai_diffaug.generate.export_splits import Split
from monai_diffaug.generate.job_record import JobRecord
from monai_diffaug.generate.nnunet_raw import SPLITS_FILE
from monai_diffaug.generate.source_images import SourceImage
from monai_diffaug.generate.webdataset_shards import INDEX

__all__ = ["export_leaks", "read_splits", "run_leaks", "split_leaks"]


def run_leaks(records: Iterable[JobRecord], sources: Mapping[str, SourceImage]) -> Iterator[Fault]:
    """Leaks that the records show: a donor of another fold than the source, a group in two folds, a group or fold that changed.

    Args:
        records: of the run.
        sources: id -> entry of the datalist, which decides where it has the entry.
    """
    known = {source.image: source for source in sources.values()} | dict(sources)
    fold_of: dict[str, int] = {}
    for record in records:
        before, entry = record.source or {}, sources.get(record.source_id)
        group, fold = str(before.get("group", "")), before.get("fold")
        if entry is not None and (entry.group, entry.fold) != (group, fold):
            now = f"{entry.group!r}, fold {entry.fold}"
            yield Fault("leak", record.job, f"its source was of group {group!r}, fold {fold}; the datalist now says {now}")
            group, fold = entry.group, entry.fold
        if fold is not None and fold_of.setdefault(group, fold) != fold:
            yield Fault("leak", record.job, f"the group {group!r} is in the folds {fold_of[group]} and {fold}")
        if record.donor is not None:
            donor = known.get(source_of_donor(str(record.donor["id"]), known))
            donor_fold = donor.fold if donor is not None else None
            if fold is not None and donor_fold is not None and donor_fold != fold:
                yield Fault("leak", record.job, f"its source is in fold {fold}, its donor {record.donor['id']} in fold {donor_fold}")


def export_leaks(folder: Path, records: Iterable[JobRecord]) -> Iterator[Fault]:
    """Leaks in the splits of an export, read from the files that a training reads.

    Raises:
        ExportError: the folder is no export.
    """
    about = read_export(folder)
    cases = about["cases"]
    jobs = {record.job.replace(".", "-") for record in records}
    for name, case in cases.items():
        if case["synthetic"] and name not in jobs:
            yield Fault("leak", f"{folder.name}/{name}", "the run has no such result any more; export again")
    yield from (Fault(kind, f"{folder.name}/{where}", text) for kind, where, text in split_leaks(read_splits(folder), cases))


def split_leaks(splits: Iterable[Split], cases: Mapping[str, Mapping[str, Any]]) -> Iterator[Fault]:
    """Cases of each fold that are in training while a group that they come from validates, and synthetic cases in validation.

    Args:
        splits: of the folds.
        cases: case -> "synthetic" and "groups".

    >>> cases = {"a": {"synthetic": False, "groups": ["A"]}, "a-000": {"synthetic": True, "groups": ["B", "A"]}}
    >>> list(split_leaks([Split(("a-000",), ("a",))], cases))
    [Fault(kind='leak', where='a-000', text="trains in fold 0, where its group 'A' validates")]
    """
    for k, split in enumerate(splits):
        validating = {group for name in split.validation if name in cases for group in cases[name]["groups"]}
        for name in split.validation:
            if name not in cases:
                yield Fault("leak", name, f"validates in fold {k} and is in no table of the export")
            elif cases[name]["synthetic"]:
                yield Fault("leak", name, f"is synthetic and validates in fold {k}")
        for name in split.training:
            if name not in cases:
                yield Fault("leak", name, f"trains in fold {k} and is in no table of the export")
                continue
            both = sorted(validating & set(cases[name]["groups"]))
            if both:
                yield Fault("leak", name, f"trains in fold {k}, where its group {both[0]!r} validates")


def read_splits(folder: Path) -> tuple[Split, ...]:
    """Splits of an export as its files say them; none for BIDS, where the sidecar of each image has its "TrainingFolds".

    Raises:
        OSError: a file of the export is missing.
    """
    if (folder / SPLITS_FILE).is_file():
        return tuple(Split(tuple(fold["train"]), tuple(fold["val"])) for fold in _json(folder / SPLITS_FILE))
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX)

        def cases_of(shards: Iterable[str]) -> tuple[str, ...]:
            return tuple(case for shard in shards for case in index["shards"][shard])

        return tuple(Split(cases_of(fold[TRAINING]), cases_of(fold[VALIDATION])) for fold in index["folds"])
    lists = [_json(path) for path in sorted(folder.glob("fold_*.json"), key=lambda path: int(path.stem.split("_")[1]))]
    return tuple(Split(*(tuple(entry["case"] for entry in content[key]) for key in (TRAINING, VALIDATION))) for content in lists)


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
