"""Audit of a finished run: faults, near-copies, leaks, and the share of refused jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monai_diffaug.generate.audit_copies import CopyCheck, near_copies, same_bytes
from monai_diffaug.generate.audit_files import (
    Fault,
    file_faults,
    read_failures,
    read_records,
    record_faults,
    result_faults,
    source_faults,
)
from monai_diffaug.generate.audit_leaks import export_leaks, run_leaks
from monai_diffaug.generate.export_cases import TRAINING, ExportError, LeakError, datalist_of, read_cases
from monai_diffaug.generate.run_folder import Run, read_settings
from monai_diffaug.generate.source_images import DatalistError, read_sources

__all__ = ["Audit", "audit_run"]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        faults: each with its kind, place and text; none in a clean run.
        accepted, filtered, failed: number of jobs.
        reasons: reason -> number of filtered jobs, the most frequent first.
        copies: comparison with the real lesions.
        notes: what could not be checked, and why.
    """

    faults: tuple[Fault, ...]
    accepted: int
    filtered: int
    failed: int
    reasons: dict[str, int]
    copies: CopyCheck
    notes: tuple[str, ...]

    @property
    def refused_share(self) -> float:
        """Filtered jobs as a share of the finished ones."""
        return self.filtered / max(self.accepted + self.filtered, 1)


def audit_run(
    folder: Path | str,
    *,
    datalist: Path | str | None = None,
    section: str = TRAINING,
    exports: Sequence[Path | str] = (),
    hashes: bool = True,
    copies: bool = True,
) -> Audit:
    """Check the files, records, labels, splits and lesions of a run.

    Args:
        folder: of the run.
        datalist: that of the run, if it was moved.
        section: list of the datalist that the run used.
        exports: folders of ``monai-diffaug export`` whose splits are checked too.
        hashes: compare the SHA-256 of each file with the record, and of the sources.
        copies: compare the painted lesions with the real ones.

    Raises:
        FileNotFoundError: no run in the folder.
        RecordError: ``run.json`` is damaged.
        ExportError: an export that is none.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    records, faults = read_records(folder)
    notes: list[str] = []
    failures, more = read_failures(folder, records)
    faults += more
    run = Run(folder, settings, tuple(records), tuple(failures))
    sources = {}
    try:
        path = datalist_of(run, None if datalist is None else Path(datalist))
        sources = {source.id: source for source in read_sources(path, section)}
    except (ExportError, DatalistError) as error:
        notes.append(f"sources and splits are not checked: {error}")
    else:
        try:
            read_cases(replace(run, records=()), path, section=section)
        except LeakError as error:
            faults.append(Fault("leak", path.name, str(error)))
        except ExportError as error:
            notes.append(f"the folds are not checked: {error}")
        absent = {record.source_id for record in records} - sources.keys()
        text = f"not in {path.name}; if it was withdrawn, remove its results with --withdraw"
        faults += [Fault("source", id_, text) for id_ in sorted(absent)]
    faults += record_faults(run, sources.values())
    for record in records:
        before = len(faults)
        faults += file_faults(run, record, hashes=hashes)
        if record.files and len(faults) == before:
            faults += result_faults(run, record, sources.get(record.source_id)) if record in run.accepted else ()
    if hashes:
        faults += source_faults(sources, records)
    faults += run_leaks(records, sources)
    for export in exports:
        faults += export_leaks(Path(export), records)
    faults += same_bytes(records)
    check = near_copies(run, sources) if copies and sources else CopyCheck(note="not compared")
    faults += check.faults
    reasons = Counter(record.reason or "no reason" for record in run.filtered)
    return Audit(tuple(faults), len(run.accepted), len(run.filtered), len(failures), dict(reasons.most_common()), check, tuple(notes))
