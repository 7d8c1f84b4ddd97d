"""The folder of a run: where its files are, and ``read_run``, the only way that exports, audit and report read it.

DIR/run.json                spec, its hash, seed, datalist, and the hashes of the sources; written first
DIR/results/JOB/            image, label, mask and record.json of a finished job; the folder appears whole or not at all
DIR/failed/JOB.json         last failure of a job; removed when the job succeeds later
DIR/index.jsonl             the records, one line per finished job
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_diffaug.generate.job_record import ACCEPTED, FILTERED, JobRecord, RecordError

__all__ = ["FAILED_FOLDER", "INDEX_FILE", "RECORD_FILE", "RESULTS_FOLDER", "RUN_FILE", "RUN_FORMAT", "Failure", "Run", "read_run"]

RUN_FORMAT = 1
RUN_FILE, RESULTS_FOLDER, RECORD_FILE, FAILED_FOLDER, INDEX_FILE = "run.json", "results", "record.json", "failed", "index.jsonl"


@dataclass(frozen=True)
class Failure:
    """The last failure of a job that has no result yet."""

    job: str
    error: str
    attempts: int
    traceback: str


@dataclass(frozen=True)
class Run:
    """A run folder in memory.

    Attributes:
        folder: of the run.
        settings: content of ``run.json``: "spec", "spec_sha256", "seed", "package_version", "datalist", "sources".
        records: of the finished jobs, in the order of their names.
        failures: of the other jobs, in the order of their names.
    """

    folder: Path
    settings: Mapping[str, Any]
    records: tuple[JobRecord, ...]
    failures: tuple[Failure, ...]

    @property
    def accepted(self) -> tuple[JobRecord, ...]:
        """Records of the accepted jobs."""
        return tuple(record for record in self.records if record.state == ACCEPTED)

    @property
    def filtered(self) -> tuple[JobRecord, ...]:
        """Records of the filtered jobs."""
        return tuple(record for record in self.records if record.state == FILTERED)

    def file(self, record: JobRecord, role: str) -> Path:
        """Path of a job's "image", "label" or "mask".

        Raises:
            KeyError: the job has no such file.
        """
        return self.folder / RESULTS_FOLDER / record.job / record.files[role]


def read_run(folder: Path | str) -> Run:
    """Read a run folder: ``run.json``, the record of each finished job, and the failures.

    Raises:
        FileNotFoundError: no run in the folder.
        RecordError: ``run.json`` or a record is damaged or of another version; names the file.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    records = []
    for job in finished_jobs(folder):
        path = folder / RESULTS_FOLDER / job / RECORD_FILE
        try:
            records.append(JobRecord.from_json(path.read_bytes()))
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from error
    failures = []
    finished = {record.job for record in records}
    for path in sorted((folder / FAILED_FOLDER).glob("[!.]*.json")):
        try:
            failure = Failure(**json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise RecordError(f"{path} is no failure of a job: {error}") from error
        if failure.job not in finished:
            failures.append(failure)
    return Run(folder, settings, tuple(records), tuple(failures))


def read_settings(folder: Path) -> dict[str, Any]:
    """Content of ``run.json``.

    Raises:
        FileNotFoundError: no run in the folder.
        RecordError: damaged, or of another version.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {folder} is no folder of `monai-diffaug generate`")
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise RecordError(f"{path} is no JSON: {error}") from error
    if not isinstance(settings, dict) or settings.get("format") != RUN_FORMAT:
        version = settings.get("format") if isinstance(settings, dict) else None
        raise RecordError(f"{path} is of format {version}, this version reads {RUN_FORMAT}; use the version of monai_diffaug that wrote it")
    return settings


def finished_jobs(folder: Path) -> list[str]:
    """Names of the jobs with a record, sorted."""
    try:
        with os.scandir(folder / RESULTS_FOLDER) as entries:
            jobs = [entry.name for entry in entries if not entry.name.startswith(".") and os.path.exists(f"{entry.path}/{RECORD_FILE}")]
    except FileNotFoundError:
        return []
    return sorted(jobs)
