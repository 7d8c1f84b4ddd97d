"""The index of a run: one line per finished job in ``index.jsonl``, and the same as a table in ``index.parquet`` with pyarrow."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai_diffaug.files.whole_file import locked_folder, whole_file
from monai_diffaug.generate.job_record import JobRecord
from monai_diffaug.generate.run_folder import INDEX_FILE, Run, read_run

__all__ = ["PARQUET_FILE", "write_index"]

PARQUET_FILE = "index.parquet"
FLAT = ("job", "source_id", "copy", "seed", "state", "kind", "reason", "prompt", "finding", "label_value", "package_version", "model")
FLAT_SOURCE, FLAT_EDIT = ("image", "label", "group", "fold"), ("score", "tries", "n_slices")
FLAT_FIGURES = ("seconds", "local_ssim", "lesion_area_mm2", "lesion_volume_ml")


def write_index(folder: Path) -> Run:
    """Write the index of all finished jobs, whole or not at all; returns the run. Several shards may call it at once."""
    with locked_folder(folder):  # not the lock of a run, which shards do not wait for
        run = read_run(folder)
        with whole_file(folder / INDEX_FILE) as part:
            part.write_text("".join(f"{record.to_json()}\n" for record in run.records), encoding="utf-8")
        _write_parquet(folder / PARQUET_FILE, run.records)
    return run


def _write_parquet(path: Path, records: tuple[JobRecord, ...]) -> None:
    """One row per job; nothing without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    rows = [_row(record) for record in records]
    kinds = {"copy": pyarrow.int32(), "seed": pyarrow.int64(), "label_value": pyarrow.int32(), "source_fold": pyarrow.int32()}
    kinds |= {"edit_tries": pyarrow.int32(), "edit_n_slices": pyarrow.int32(), "edit_score": pyarrow.float64()}
    kinds |= {f"figures_{name}": pyarrow.float64() for name in FLAT_FIGURES}
    names = [*FLAT, *(f"source_{name}" for name in FLAT_SOURCE), *(f"edit_{name}" for name in FLAT_EDIT)]
    names += [*(f"figures_{name}" for name in FLAT_FIGURES), "files", "sha256", "donor"]
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])
    with whole_file(path) as part:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), part)


def _row(record: JobRecord) -> dict[str, Any]:
    """A record as one flat row; mappings without fixed keys are JSON texts."""
    content = asdict(record)
    row = {name: content[name] for name in FLAT}
    for group, names in (("source", FLAT_SOURCE), ("edit", FLAT_EDIT), ("figures", FLAT_FIGURES)):
        row |= {f"{group}_{name}": content[group].get(name) for name in names}
    return row | {name: None if content[name] is None else json.dumps(content[name]) for name in ("files", "sha256", "donor")}
