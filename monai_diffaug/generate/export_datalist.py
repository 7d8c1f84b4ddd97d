"""MONAI datalists with folds: one of all cases, and one per fold with its training and validation list."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_diffaug.files.picture import output_suffix
from monai_diffaug.generate.export_cases import TRAINING, VALIDATION, Case, CaseTable
from monai_diffaug.generate.export_folder import write_json
from monai_diffaug.generate.export_images import blank_label
from monai_diffaug.generate.export_labels import write_ids

__all__ = ["SYNTHETIC", "fold_file", "write_datalists", "write_monai"]

SYNTHETIC, LABELS = "synthetic", "labels"


def fold_file(k: int) -> str:
    """Name of the datalist of a fold."""
    return f"fold_{k}.json"


def write_monai(table: CaseTable, folder: Path) -> dict[str, int]:
    """Write the datalists with absolute paths into an empty folder; nothing is copied.

    Normal images without a label get one of background only. Returns how many.
    """
    paths: dict[str, tuple[Any, Any]] = {}
    for case in table.cases:
        images = [str(path.absolute()) for path in case.images]
        label = case.label
        if label is None:
            ids, like = blank_label(case.images)
            label = folder / LABELS / f"{case.name}{output_suffix(case.images[0])}"
            label.parent.mkdir(exist_ok=True)
            write_ids(ids, like, label)
            label = label.relative_to(folder)  # the datalists are in the folder
        paths[case.name] = (images[0] if len(images) == 1 else images, str(label))
    write_datalists(table, folder, paths)
    return {"blank labels written": sum(case.label is None for case in table.cases)}


def write_datalists(table: CaseTable, folder: Path, paths: Mapping[str, tuple[Any, Any]], *, single: str = "datalist.json") -> None:
    """Write a datalist of all cases and ``fold_K.json`` into a folder.

    ``datalist.json``: "training" lists the real cases with "fold", as Auto3DSeg reads it; "synthetic" lists the results with "folds", the
    folds in which each may train. A key "fold" cannot say that: it puts a case into the validation of one fold and the training of all
    others. ``fold_K.json`` lists "training" (real and synthetic) and "validation" (real) of fold K, which Auto3DSeg takes as one fold.

    Args:
        table: the cases.
        folder: of the files.
        paths: case -> image (or images) and label in the lists.
        single: name of the list of all cases; empty writes none.
    """
    entries = {case.name: _entry(case, paths) for case in table.cases}
    content = {key: table.datalist[key] for key in ("name", "modality", "anatomy", "labels", "finding") if key in table.datalist}
    trained = [set(split.training) for split in table.splits]
    real = [
        entries[case.name] | ({} if table.fold_of[case.groups[0]] is None else {"fold": table.fold_of[case.groups[0]]})
        for case in table.real
    ]
    if single:
        synthetic = [
            entries[case.name] | {"folds": [k for k, names in enumerate(trained) if case.name in names]} for case in table.synthetic
        ]
        write_json(folder / single, {**content, TRAINING: real, SYNTHETIC: synthetic})
    for k, split in enumerate(table.splits):
        lists = {
            TRAINING: [entries[name] for name in split.training],
            VALIDATION: [entries[name] for name in split.validation],
        }
        write_json(folder / fold_file(k), {**content, **lists})


def _entry(case: Case, paths: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    image, label = paths[case.name]
    entry = {"image": image, "label": label, "case": case.name, "group": case.groups[0], SYNTHETIC: case.is_synthetic, **case.words}
    if case.record is not None:
        entry |= {"source": case.sources[0], "donor": case.record.donor["id"] if case.record.donor else ""}
    return entry
