"""The plan of a run: its jobs, and the time and disk that they will need, estimated from three trial edits."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_diffaug.generate.job_record import CONTROL
from monai_diffaug.generate.jobs import Job, plan_jobs, shard_of
from monai_diffaug.generate.pipeline import build_pipelines, require_keys
from monai_diffaug.generate.run_folder import RECORD_FILE, RESULTS_FOLDER, finished_jobs
from monai_diffaug.generate.run_job import FAILED, JobRunner
from monai_diffaug.generate.source_images import DatalistError, SourceImage, common_words
from monai_diffaug.generate.spec import GenerateSpec

__all__ = ["RunPlan", "plan_run"]

TRIALS = 3
MEGABYTE = 1e6


@dataclass(frozen=True)
class RunPlan:
    """Jobs of a run, or of a shard, and what they need.

    Attributes:
        jobs: names of all jobs, in their order.
        controls: number of jobs that repaint normal tissue.
        done: number of jobs that have a result.
        job_seconds: median of the trial edits; NaN if none of them succeeded.
        bytes_needed: disk that the other jobs need.
        bytes_free: on the disk of the folder.
        failures: of the trial edits, one line each.
    """

    jobs: tuple[str, ...]
    controls: int
    done: int
    job_seconds: float
    bytes_needed: int
    bytes_free: int
    failures: tuple[str, ...]

    def seconds(self, workers: int) -> float:
        """Time that the jobs without a result need."""
        return self.job_seconds * (len(self.jobs) - self.done) / max(workers, 1)


def plan_run(
    spec: GenerateSpec, sources: Sequence[SourceImage], folder: Path, *, shard: tuple[int, int] | None = None, trials: int = TRIALS
) -> RunPlan:
    """Plan a run; the trial edits are written to a temporary folder, and nothing to ``folder``.

    The time is the median, so that loading the models in the first trial does not count. The disk is that of the files of the sources,
    scaled by the trials that were accepted.

    Raises:
        DatalistError: a source is missing.
    """
    for source in sources:
        for role in ("image", "label"):
            path = source.path(role)
            if path is not None and not path.exists():
                raise DatalistError(f"source {source.id!r}: {role} {path} does not exist")
    require_keys(build_pipelines(spec), common_words(sources))
    jobs = plan_jobs(sources, seed=spec.seed, copies=spec.copies, normal=spec.normal)
    jobs = jobs if shard is None else shard_of(jobs, *shard)
    done = set(finished_jobs(folder))
    waiting = [job for job in jobs if job.name not in done]
    times: list[float] = []
    ratios: list[float] = []
    failures: list[str] = []
    for job in waiting[:: max(1, len(waiting) // trials)][:trials]:
        with tempfile.TemporaryDirectory() as place:
            if not times and not failures:
                runner = JobRunner(spec.to_plain(), place)
            runner.results = Path(place) / RESULTS_FOLDER
            start = time.perf_counter()
            outcome = runner.run(job)
            times.append(time.perf_counter() - start)
            if outcome.state == FAILED:
                failures.append(f"{job.name}: {outcome.error}")
            files = [file for file in (runner.results / job.name).glob("*") if file.name != RECORD_FILE]
            if files:
                ratios.append(sum(file.stat().st_size for file in files) / _source_bytes(job))
    needed = statistics.fmean(ratios or [1.0]) * sum(_source_bytes(job) for job in waiting)
    free = shutil.disk_usage(next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())).free
    return RunPlan(
        jobs=tuple(job.name for job in jobs),
        controls=sum(job.kind == CONTROL for job in jobs),
        done=len(jobs) - len(waiting),
        job_seconds=statistics.median(times) if times else 0.0,
        bytes_needed=int(needed),
        bytes_free=free,
        failures=tuple(failures),
    )


def _source_bytes(job: Job) -> int:
    """Bytes of the image and the label of a job's source."""
    paths = [job.source.path(role) for role in ("image", "label")]
    files = [file for path in paths if path is not None for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return max(1, sum(file.stat().st_size for file in files))
