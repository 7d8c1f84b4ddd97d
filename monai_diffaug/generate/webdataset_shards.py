"""WebDataset shards: tar files with the files of each case, grouped so that each fold is a list of shards.

Format: https://github.com/webdataset/webdataset. Cases that train and validate in the same folds share
shards, so that no case is stored twice and the rule on leaks holds for whole files: ``real-fold0-000000.tar`` validates in fold 0,
``synthetic-not0-not2-000000.tar`` does not train in folds 0 and 2.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai_diffaug.files.picture import output_suffix, suffix_of
from monai_diffaug.generate.export_cases import TRAINING, VALIDATION, Case, CaseTable
from monai_diffaug.generate.export_folder import write_json
from monai_diffaug.generate.export_images import blank_label, read_channels, write_nifti_array
from monai_diffaug.generate.export_labels import ClassTable, read_label, write_ids

__all__ = ["INDEX", "write_webdataset"]

INDEX = "index.json"
SHARD_CASES = 1000
TWO_FILES = (".mhd", ".nhdr")


def write_webdataset(table: CaseTable, classes: ClassTable, folder: Path, *, shard_cases: int = SHARD_CASES) -> dict[str, int]:
    """Write shards and ``index.json`` into an empty folder; the same cases give the same bytes.

    A sample has ``image.SUFFIX``, ``label.SUFFIX``, of a synthetic case ``mask.SUFFIX`` (the bytes of the files, class ids as they are),
    and ``json`` (words, groups, record).

    Args:
        table: the cases.
        classes: names of the classes, for the index.
        folder: of the shards.
        shard_cases: most cases in a shard.
    """
    trained = [frozenset(split.training) for split in table.splits]
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in table.real:
        fold = table.fold_of[case.groups[0]]
        groups["real-training" if fold is None else f"real-fold{fold}"].append(case)
    for case in table.synthetic:
        excluded = [k for k, names in enumerate(trained) if case.name not in names]
        if len(excluded) < len(trained):
            groups["-".join(["synthetic", *(f"not{k}" for k in excluded)])].append(case)
    shards: dict[str, list[str]] = {}
    for group, cases in sorted(groups.items()):
        for number, start in enumerate(range(0, len(cases), shard_cases)):
            some = cases[start : start + shard_cases]
            name = f"{group}-{number:06}.tar"
            shards[name] = [case.name for case in some]
            with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
                for case in some:
                    _add(tar, case, folder)
    folds = []
    for split in table.splits:
        training, validation = set(split.training), set(split.validation)
        folds.append(
            {
                TRAINING: [name for name, cases in shards.items() if training.issuperset(cases)],
                VALIDATION: [name for name, cases in shards.items() if validation.issuperset(cases)],
            }
        )
    labels = {classes.names[new]: old for old, new in classes.new_id.items()}
    write_json(folder / INDEX, {"folds": folds, "labels": labels, "shards": shards})
    return {"shards": len(shards)}


def _add(tar: tarfile.TarFile, case: Case, folder: Path) -> None:
    suffix = output_suffix(case.images[0]) if len(case.images) == 1 else ".nii.gz"
    files: dict[str, bytes] = {}
    if len(case.images) == 1 and _is_one_file(case.images[0]):
        files[f"image{suffix_of(case.images[0])}"] = case.images[0].read_bytes()
    else:
        files[f"image{suffix}"] = _written(folder / f".image{suffix}", lambda path: write_nifti_array(read_channels(case.images), path))
    if case.label is not None and _is_one_file(case.label):
        files[f"label{suffix_of(case.label)}"] = case.label.read_bytes()
    else:
        ids, like = blank_label(case.images) if case.label is None else read_label(case.label)
        files[f"label{suffix}"] = _written(folder / f".label{suffix}", lambda path: write_ids(ids, like, path))
    if case.mask is not None:
        files[f"mask{suffix_of(case.mask)}"] = case.mask.read_bytes()
    description: dict[str, Any] = {
        "case": case.name,
        "synthetic": case.is_synthetic,
        "groups": list(case.groups),
        "sources": list(case.sources),
        **case.words,
    }
    if case.record is not None:
        description["record"] = json.loads(case.record.to_json())
    files["json"] = json.dumps(description, ensure_ascii=False).encode()
    for name, content in sorted(files.items()):
        member = tarfile.TarInfo(f"{case.name}.{name}")
        member.size, member.mode = len(content), 0o644
        tar.addfile(member, io.BytesIO(content))


def _is_one_file(path: Path) -> bool:
    """False for a DICOM series, and for a header whose voxels are in a second file."""
    return suffix_of(path) not in ("", *TWO_FILES)


def _written(path: Path, write: Callable[[Path], None]) -> bytes:
    """Bytes of a file that is written and removed."""
    write(path)
    content = path.read_bytes()
    path.unlink()
    return content
