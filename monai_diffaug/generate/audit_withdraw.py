"""Withdrawal of a source: all results that come from it, as their image or as their lesion donor, are listed and removed."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.generate.audit_files import failed_files
from monai_diffaug.generate.export_cases import source_of_donor
from monai_diffaug.generate.export_folder import read_export
from monai_diffaug.generate.index_file import write_index
from monai_diffaug.generate.job_record import JobRecord
from monai_diffaug.generate.run_folder import RESULTS_FOLDER, RUN_FILE, Run, read_settings
from monai_diffaug.generate.run_lock import lock_run

__all__ = ["Descendant", "delete_descendants", "descendants_in_export", "descendants_of"]


@dataclass(frozen=True)
class Descendant:
    """A result that comes from a withdrawn source.

    Attributes:
        record: of the result.
        role: "source" or "donor".
    """

    record: JobRecord
    role: str


def descendants_of(run: Run, source_id: str) -> list[Descendant]:
    """Results, accepted and filtered, whose source or lesion donor is withdrawn.

    Args:
        run: the run.
        source_id: id of an entry, the image of a donor, a donor, or a group (patient), which stands for all that is of the group.
    """
    descendants = []
    for record in run.records:
        if source_id in (record.source_id, str((record.source or {}).get("image")), str((record.source or {}).get("group"))):
            descendants.append(Descendant(record, "source"))
        elif record.donor is not None:
            donor = str(record.donor["id"])
            if source_id in (donor, source_of_donor(donor, {source_id}), str(record.donor["group"])):
                descendants.append(Descendant(record, "donor"))
    return descendants


def descendants_in_export(folder: Path, descendants: Iterable[Descendant]) -> list[str]:
    """Cases of an export that hold one of the results.

    Raises:
        ExportError: the folder is no export.
    """
    jobs = {descendant.record.job.replace(".", "-") for descendant in descendants}
    cases: Mapping[str, object] = read_export(folder)["cases"]
    return sorted(jobs & cases.keys())


def delete_descendants(run: Run, source_id: str, descendants: Iterable[Descendant]) -> int:
    """Remove results from a run, and the failures of the source's jobs, and write the index again; returns the number of results.

    A result vanishes as a whole: its folder is renamed before its files are removed. ``run.json`` forgets the source, so that
    `generate` goes on with a datalist that no longer has it.

    Raises:
        RunLockedError: a run writes to the folder.
        OSError: a file cannot be removed.
    """
    results = run.folder / RESULTS_FOLDER
    count, ids = 0, {source_id}
    with lock_run(run.folder):
        for descendant in descendants:
            if descendant.role == "source":
                ids.add(descendant.record.source_id)
            place = results / descendant.record.job
            if place.is_dir():
                hidden = results / f".{descendant.record.job}.{secrets.token_hex(4)}.withdrawn"
                place.rename(hidden)
                shutil.rmtree(hidden)
                count += 1
        for id_ in ids:
            for path in failed_files(run.folder, hashlib.sha256(id_.encode()).hexdigest()[:8]):
                path.unlink()
        settings = read_settings(run.folder)
        settings["sources"] = {id_: state for id_, state in settings.get("sources", {}).items() if id_ not in ids}
        with whole_file(run.folder / RUN_FILE) as part:
            part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        write_index(run.folder)
    return count
