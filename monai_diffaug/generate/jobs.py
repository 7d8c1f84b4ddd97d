"""The jobs of a run, one per source and copy; name, seed and kind of a job follow from the spec's seed, source id and copy alone."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monai_diffaug.files.picture import stem_of
from monai_diffaug.generate.job_record import CONTROL, LESION
from monai_diffaug.generate.source_images import FileState, SourceImage

__all__ = ["Job", "job_name", "job_seed", "plan_jobs", "shard_of"]

LONGEST_STEM = 80
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Job:
    """One result of one source, in plain values that can be sent to another process or machine.

    Attributes:
        name: unique in a run; the name of its folder.
        copy: number of the result among those of the source, from 0.
        seed: in [0, 2**32 - 2].
        kind: "lesion" or "control".
        source: see ``SourceImage``.
    """

    name: str
    copy: int
    seed: int
    kind: str
    source: SourceImage

    def to_plain(self) -> dict[str, Any]:
        """The job as a dictionary that holds text, numbers, lists and dictionaries alone."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Job:
        """Read what ``to_plain`` wrote."""
        source = dict(values["source"])
        for name in ("image_state", "label_state"):
            source[name] = None if source[name] is None else FileState(*source[name])
        return cls(**{**values, "source": SourceImage(**source)})


def job_name(source_id: str, image: str, copy: int) -> str:
    """Name of a job: the stem of the image file, eight digits that identify the source, and the copy.

    >>> job_name("p1/scan 1.nii.gz", "p1/scan 1.nii.gz", 2)
    'scan-1-80f889ad-002'
    """
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", stem_of(Path(image))).strip("-.")[:LONGEST_STEM]
    return f"{stem or 'image'}-{hashlib.sha256(source_id.encode()).hexdigest()[:8]}-{copy:03d}"


def job_seed(seed: int, source_id: str, copy: int) -> int:
    """Seed of a job, equal on every machine.

    >>> job_seed(0, "scan.png", 0), job_seed(0, "scan.png", 1)
    (3553278112, 3864092251)
    """
    return _number("seed", seed, source_id, copy) % MAX_SEED


def plan_jobs(sources: Iterable[SourceImage], *, seed: int, copies: int, normal: float) -> list[Job]:
    """All jobs of a run, sorted by name.

    Args:
        sources: with unique ids.
        seed: of the spec.
        copies: results per source.
        normal: share of controls, in [0, 1]. Of n copies of a source, n * normal are controls, rounded up or down: by chance, but so that
            the share over all sources is right.

    Raises:
        ValueError: two jobs would have the same name.
    """
    jobs: dict[str, Job] = {}
    for source in sources:
        offset = _number("normal", seed, source.id, 0) / 2**32
        for copy in range(copies):
            is_control = math.floor(offset + (copy + 1) * normal) > math.floor(offset + copy * normal)
            name = job_name(source.id, source.image, copy)
            if name in jobs:
                raise ValueError(f"the ids {jobs[name].source.id!r} and {source.id!r} give two jobs one name, {name}; change one id")
            jobs[name] = Job(name, copy, job_seed(seed, source.id, copy), CONTROL if is_control else LESION, source)
    return [jobs[name] for name in sorted(jobs)]


def shard_of(jobs: list[Job], index: int, count: int) -> list[Job]:
    """Every ``count``-th job, from ``index`` on: the shards of a run share no job.

    >>> shard_of([10, 11, 12, 13, 14], 1, 2)
    [11, 13]
    """
    return jobs[index::count]


def _number(purpose: str, seed: int, source_id: str, copy: int) -> int:
    """A uint32 from a hash of the values."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{seed}\0{source_id}\0{copy}".encode()).digest()[:4], "big")
