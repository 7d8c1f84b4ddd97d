"""Faults in the files of a run: missing or changed files and records, grids, class ids, and results that are no edit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from monai_diffaug.errors import one_line
from monai_diffaug.files.image_file import read_picture
from monai_diffaug.files.picture import Picture, require_same_grid
from monai_diffaug.files.whole_file import content_hash
from monai_diffaug.generate.export_labels import read_label
from monai_diffaug.generate.job_record import ACCEPTED, CONTROL, JobRecord, RecordError
from monai_diffaug.generate.jobs import plan_jobs
from monai_diffaug.generate.run_folder import FAILED_FOLDER, INDEX_FILE, RECORD_FILE, RESULTS_FOLDER, Failure, Run
from monai_diffaug.generate.source_images import SourceImage

__all__ = ["Fault", "failed_files", "file_faults", "read_failures", "read_records", "record_faults", "result_faults", "source_faults"]

ROLES = ("image", "label", "mask")


class Fault(NamedTuple):
    """One fault of a run.

    Attributes:
        kind: "record", "file", "hash", "grid", "label", "source", "copy", "leak" or "failed".
        where: job, case, group or file.
        text: what is wrong.
    """

    kind: str
    where: str
    text: str


def read_records(folder: Path) -> tuple[list[JobRecord], list[Fault]]:
    """The records of a run that can be read, sorted by job, and a fault for each result that has none."""
    records, faults = [], []
    results = folder / RESULTS_FOLDER
    for place in sorted(results.iterdir()) if results.is_dir() else ():
        if place.name.startswith("."):
            faults.append(Fault("record", place.name, "left over from a job that was interrupted; `generate` removes it when it continues"))
            continue
        try:
            record = JobRecord.from_json((place / RECORD_FILE).read_bytes())
        except FileNotFoundError:
            faults.append(Fault("record", place.name, f"no {RECORD_FILE}"))
        except (OSError, RecordError) as error:
            faults.append(Fault("record", place.name, one_line(error)))
        else:
            if record.job == place.name:
                records.append(record)
            else:
                faults.append(Fault("record", place.name, f"the record is of another job, {record.job}"))
    return records, faults


def read_failures(folder: Path, records: Iterable[JobRecord]) -> tuple[list[Failure], list[Fault]]:
    """The failures of the jobs without a record, and a fault for each file that is none."""
    finished = {record.job for record in records}
    failures, faults = [], []
    for path in sorted((folder / FAILED_FOLDER).glob("[!.]*.json")):
        try:
            failure = Failure(**json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            faults.append(Fault("record", path.name, f"no failure of a job: {one_line(error)}"))
        else:
            failures += [failure] if failure.job not in finished else []
    return failures, faults


def record_faults(run: Run, sources: Iterable[SourceImage]) -> Iterator[Fault]:
    """Jobs of the plan or the index without a record, and jobs that failed."""
    finished = {record.job for record in run.records}
    failed = {failure.job for failure in run.failures}
    for failure in run.failures:
        yield Fault("failed", failure.job, f"{failure.error} ({failure.attempts} attempts)")
    index = run.folder / INDEX_FILE
    lines = index.read_text(encoding="utf-8").splitlines() if index.is_file() else []
    listed = set()
    for number, line in enumerate(lines, 1):
        try:
            listed.add(str(json.loads(line)["job"]))
        except (ValueError, TypeError, KeyError):
            yield Fault("record", INDEX_FILE, f"line {number} is no record")
    spec = run.settings.get("spec", {})
    copies, normal = spec.get("copies"), spec.get("normal", 0.0)
    made = set(run.settings.get("sources", {}))
    jobs = plan_jobs((s for s in sources if s.id in made), seed=run.settings["seed"], copies=copies, normal=normal) if copies else []
    missing = {job.name: "a job of the spec without a result" for job in jobs}
    missing |= dict.fromkeys(listed - missing.keys(), f"in {INDEX_FILE} and without a result")
    for job in sorted(missing.keys() - finished - failed):
        yield Fault("record", job, missing[job])


def file_faults(run: Run, record: JobRecord, *, hashes: bool = True) -> Iterator[Fault]:
    """Files of a job that are missing, that no record lists, or whose content is not that of the record."""
    place = run.folder / RESULTS_FOLDER / record.job
    files = dict(record.files or {})
    if record.state == ACCEPTED:
        for role in ROLES:
            if role not in files:
                yield Fault("record", record.job, f"an accepted result without {role}")
    for role, name in files.items():
        path = place / name
        if not path.is_file():
            yield Fault("file", record.job, f"{name} is missing")
        elif hashes and content_hash(path) != (record.sha256 or {}).get(role):
            yield Fault("hash", record.job, f"{name} is not the file of the record: its SHA-256 differs")
    for path in sorted(place.iterdir()):
        if path.name not in (RECORD_FILE, *files.values()):
            yield Fault("file", record.job, f"{path.name} is in no record")


def result_faults(run: Run, record: JobRecord, source: SourceImage | None) -> Iterator[Fault]:
    """Grid and label faults of an accepted result, and a result that equals its source.

    The image must be on the grid of its source, label and mask on that of the image. The label may hold the classes of the source's label
    and the painted one, which must be there; the label of a control holds nothing that its source's has not.
    """
    try:
        image = read_picture(run.file(record, "image"), layers=True)
        label, label_file = read_label(run.file(record, "label"))
        mask, mask_file = read_label(run.file(record, "mask"))
        for file, role in ((label_file, "label"), (mask_file, "mask")):
            require_same_grid(image, file, role)
    except (ValueError, OSError, KeyError) as error:
        yield Fault("grid", record.job, one_line(error))
        return
    if not mask.any():
        yield Fault("label", record.job, "the mask is empty")
    elif record.kind != CONTROL and record.label_value > 0 and not (label[mask > 0] == record.label_value).any():
        yield Fault("label", record.job, f"the mask holds no voxel of class {record.label_value}, which the edit painted")
    if source is not None:
        yield from _against_source(record, source, image, label)


def _against_source(record: JobRecord, source: SourceImage, image: Picture, label: np.ndarray) -> Iterator[Fault]:
    image_path, label_path = source.path("image"), source.path("label")
    if image_path is None or not image_path.exists():
        yield Fault("source", record.job, f"its source {image_path} is missing")
        return
    try:
        original = read_picture(image_path, layers=True)
        require_same_grid(original, image, "result")
        before = np.zeros_like(label) if label_path is None else read_label(label_path)[0]
    except (ValueError, OSError) as error:
        yield Fault("grid", record.job, one_line(error))
        return
    if original.stored.shape == image.stored.shape and np.array_equal(original.stored, image.stored):
        yield Fault("copy", record.job, "the image equals its source")
    painted = {record.label_value} if record.kind != CONTROL else set()
    unknown = set(np.unique(label).tolist()) - set(np.unique(before).tolist()) - painted - {0}
    if unknown:
        ids = ", ".join(map(str, sorted(unknown)))
        yield Fault("label", record.job, f"the label has the class ids {ids}, which neither its source has nor the edit painted")
    if record.kind == CONTROL and ((label > 0) & (before == 0)).any():
        yield Fault("label", record.job, "the label of a control marks voxels that are background in its source")


def source_faults(sources: Mapping[str, SourceImage], records: Iterable[JobRecord]) -> Iterator[Fault]:
    """Sources whose files are no longer those of the run."""
    recorded = {record.source_id: record.source or {} for record in records}
    for id_, before in recorded.items():
        source = sources.get(id_)
        for role in ("image", "label"):
            path, expected = source.path(role) if source else None, before.get(f"{role}_sha256")
            if path is not None and expected and path.exists() and content_hash(path) != expected:
                yield Fault("source", id_, f"{role} {path} changed after the run")


def failed_files(folder: Path, digest: str) -> list[Path]:
    """Failures of the jobs of a source, by the digits in their names that identify it."""
    return sorted((folder / FAILED_FOLDER).glob(f"*-{digest}-*.json"))
