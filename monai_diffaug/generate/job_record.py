"""The record of one finished job: what was made, from which source, with which seed and model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["ACCEPTED", "CONTROL", "FILTERED", "LESION", "RECORD_FORMAT", "JobRecord", "RecordError"]

RECORD_FORMAT = 1
ACCEPTED, FILTERED = "accepted", "filtered"
LESION, CONTROL = "lesion", "control"


class RecordError(ValueError):
    """A file is no record of this package's ``generate``, or of another version of it."""


@dataclass(frozen=True)
class JobRecord:
    """One finished job, in plain values.

    Attributes:
        job: name of the job and of its folder, unique in a run.
        source_id: id of the source in the datalist.
        copy: number of the result among those of the source, from 0.
        seed: uint32 that all random numbers of the job follow from.
        state: "accepted", or "filtered": the pipeline made no result that it accepts.
        kind: "lesion", or "control": normal tissue repainted, with nothing added to the label.
        reason: why the job was filtered, else empty.
        files: role -> file name in the job's folder: "image", "label", "mask". Empty without files.
        sha256: role -> SHA-256 of the file.
        source: "image" and "label" (paths as in the datalist), "image_sha256", "group" (patient) and "fold" (or None).
        donor: "id" and "group" of the lesion donor; None without one.
        prompt: text that the model got.
        finding: finding that the prompt names; empty for controls.
        label_value: class id that the edit painted; 0 if it painted none.
        edit: the record of the transform, see ``DiffAugRecord``.
        figures: "seconds", "local_ssim" (if defined), and "lesion_volume_ml" or "lesion_area_mm2" (pixels of a picture count as 1 mm).
        package_version: version of this package.
        model: source of the inpainter.
        model_sha256: hash of its weights; empty for a model that is not in a local file or folder.
        format: version of this record.

    >>> record = JobRecord(job="scan-0a1b2c3d-000", source_id="scan.png", copy=0, seed=7, state="accepted", kind="lesion")
    >>> JobRecord.from_json(record.to_json()) == record
    True
    >>> JobRecord.from_json('{"format": 2}')
    Traceback (most recent call last):
    ...
    monai_diffaug.generate.job_record.RecordError: a record of format 2, this version reads 1; use the version that wrote it
    """

    job: str
    source_id: str
    copy: int
    seed: int
    state: str
    kind: str
    reason: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    donor: Mapping[str, str] | None = None
    prompt: str = ""
    finding: str = ""
    label_value: int = 0
    edit: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    package_version: str = ""
    model: str = ""
    model_sha256: str = ""
    format: int = RECORD_FORMAT

    def __post_init__(self) -> None:
        if self.state not in (ACCEPTED, FILTERED):
            raise RecordError(f"state must be {ACCEPTED} or {FILTERED}, got {self.state!r}")
        if self.kind not in (LESION, CONTROL):
            raise RecordError(f"kind must be {LESION} or {CONTROL}, got {self.kind!r}")

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> JobRecord:
        """Read what ``to_json`` wrote.

        Raises:
            RecordError: no JSON object, another format, or missing, unknown or wrong values.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise RecordError(f"a record that is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise RecordError(f"a record must be a JSON object, got {type(content).__name__}")
        if content.get("format") != RECORD_FORMAT:
            raise RecordError(
                f"a record of format {content.get('format')}, this version reads {RECORD_FORMAT}; use the version that wrote it"
            )
        names = {each.name for each in fields(cls)}
        if content.keys() != names:
            missing, unknown = sorted(names - content.keys()), sorted(content.keys() - names)
            raise RecordError(f"a record with missing keys ({', '.join(missing)}) or unknown keys ({', '.join(unknown)})")
        return cls(**content)
