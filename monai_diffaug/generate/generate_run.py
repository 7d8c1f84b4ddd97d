"""Make or continue a run: plan the jobs, refuse what does not fit the folder, run what is not done, count how the jobs end."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from monai_diffaug.files.whole_file import locked_folder, whole_file
from monai_diffaug.generate.index_file import PARQUET_FILE, write_index
from monai_diffaug.generate.job_record import ACCEPTED, FILTERED
from monai_diffaug.generate.jobs import Job, plan_jobs, shard_of
from monai_diffaug.generate.local_runner import run_here, run_in_processes
from monai_diffaug.generate.pipeline import build_pipelines, model_place, require_keys
from monai_diffaug.generate.ray_runner import require_ray, run_on_ray
from monai_diffaug.generate.run_folder import (
    FAILED_FOLDER,
    INDEX_FILE,
    RESULTS_FOLDER,
    RUN_FILE,
    RUN_FORMAT,
    Failure,
    finished_jobs,
    read_settings,
)
from monai_diffaug.generate.run_job import FAILED, JobOutcome, part_folders
from monai_diffaug.generate.run_lock import lock_run
from monai_diffaug.generate.source_images import DatalistError, FileState, SourceImage, common_words, file_state
from monai_diffaug.generate.spec import GenerateSpec
from monai_diffaug.version import __version__

__all__ = ["Progress", "RunChangedError", "RunCounts", "Runner", "generate_run"]

logger = logging.getLogger(__name__)

SHOWN = 3  # differences that a message names


class RunChangedError(ValueError):
    """The folder holds a run of another spec, other sources or another version, or files that are of no run."""


@dataclass(frozen=True)
class Runner:
    """Place where the jobs run.

    Attributes:
        workers: processes on this machine, or actors of Ray; 0 is this process, or as many actors as there is room for.
        ray: address of a Ray cluster; "" takes the one of ``RAY_ADDRESS``, else starts Ray here. None runs without Ray.
        gpus: of each actor of Ray.
        retries: further attempts of a job that raises.
    """

    workers: int = 0
    ray: str | None = None
    gpus: float = 0.0
    retries: int = 0

    def outcomes(self, settings: Mapping[str, Any], jobs: Sequence[Job]) -> Generator[JobOutcome, None, None]:
        """Run jobs; the outcomes in the order in which they end."""
        settings = {**settings, "retries": self.retries}
        if self.ray is not None:
            return run_on_ray(settings, jobs, address=self.ray or None, actors=self.workers or None, gpus=self.gpus)
        return run_in_processes(settings, jobs, self.workers) if self.workers else run_here(settings, jobs)


@dataclass
class RunCounts:
    """Jobs of a run, or of a shard.

    Attributes:
        total: all of them.
        done_before: finished by earlier calls.
        accepted, filtered, failed: of this call.
        disk_full: whether a full disk stopped the call.
        started: when the first job began, by ``time.monotonic``.
    """

    total: int = 0
    done_before: int = 0
    accepted: int = 0
    filtered: int = 0
    failed: int = 0
    disk_full: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> int:
        """Jobs that this call ran to their end."""
        return self.accepted + self.filtered + self.failed

    @property
    def per_minute(self) -> float:
        """Jobs per minute of this call."""
        return 60 * self.ended / max(time.monotonic() - self.started, 1e-9)

    def add(self, state: str) -> None:
        """Count one job."""
        self.accepted += state == ACCEPTED
        self.filtered += state == FILTERED
        self.failed += state == FAILED


Progress = Callable[[RunCounts], None]


def generate_run(
    spec: GenerateSpec,
    sources: Sequence[SourceImage],
    folder: Path,
    *,
    datalist: str = "",
    section: str = "training",
    runner: Runner | None = None,
    shard: tuple[int, int] | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> RunCounts:
    """Run the jobs of a spec that have no result in the folder yet.

    Args:
        spec: see ``read_spec``.
        sources: see ``read_sources``.
        folder: of the run: new, empty, or of a run with the same spec and sources.
        datalist, section: path of the datalist and the list in it, for ``run.json``.
        runner: None runs in this process.
        shard: (index, count): every count-th job from index on; None runs all.
        restart: remove the results that are there and begin again.
        progress: called before the first job and after each.

    Raises:
        RunChangedError: the folder holds something else; the message names what differs.
        DatalistError: a source of a new run is missing.
        RunLockedError: another process writes to the folder.
        WorkerError: the workers cannot start.
        MissingExtraError: Ray is not installed.
        OSError: the folder cannot be written.
    """
    runner = runner or Runner()
    if runner.ray is not None:
        require_ray()
    _require_run_or_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_run(folder, shard):
        with locked_folder(folder):  # shards that begin together write one run.json
            if restart:
                _remove_results(folder)
            sources, models = _settle(spec, sources, folder, {"datalist": datalist, "section": section})
        jobs = plan_jobs(sources, seed=spec.seed, copies=spec.copies, normal=spec.normal)
        jobs = jobs if shard is None else shard_of(jobs, *shard)
        names = {job.name for job in jobs}
        (folder / RESULTS_FOLDER).mkdir(exist_ok=True)
        for part, job in part_folders(folder / RESULTS_FOLDER).items():
            if job in names:
                shutil.rmtree(part, ignore_errors=True)
        done = set(finished_jobs(folder))
        waiting = [job for job in jobs if job.name not in done]
        counts = RunCounts(total=len(jobs), done_before=len(jobs) - len(waiting))
        if progress is not None:
            progress(counts)
        settings = {"spec": spec.to_plain(), "folder": str(folder.absolute()), "models": models}
        outcomes = runner.outcomes(settings, waiting)
        try:
            for outcome in outcomes:
                counts.add(outcome.state)
                _note(folder, outcome)
                if progress is not None:
                    progress(counts)
                if outcome.disk_full:
                    counts.disk_full = True
                    break
        finally:
            outcomes.close()  # ends the workers
            for part, job in part_folders(folder / RESULTS_FOLDER).items():
                if job in names:
                    shutil.rmtree(part, ignore_errors=True)
            with _tolerated(counts.disk_full):
                write_index(folder)
    return counts


def _tolerated(disk_full: bool) -> AbstractContextManager[None]:
    """A full disk is reported once, at the end; what cannot be written then follows from the records later."""
    return suppress(OSError) if disk_full else nullcontext()


def _note(folder: Path, outcome: JobOutcome) -> None:
    """Keep the failure of a job, or remove that of an earlier attempt."""
    path = folder / FAILED_FOLDER / f"{outcome.job}.json"
    if outcome.state != FAILED:
        path.unlink(missing_ok=True)
        return
    logger.error("%s failed: %s", outcome.job, outcome.error)
    failure = Failure(outcome.job, outcome.error, outcome.attempts, outcome.traceback)
    with _tolerated(outcome.disk_full):
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as part:
            part.write_text(json.dumps(asdict(failure), indent=1) + "\n", encoding="utf-8")


def _require_run_or_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunChangedError(f"{folder} is a file; give a folder")
    ours = (RUN_FILE, "lock", RESULTS_FOLDER)
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    foreign = [name for name in names if name not in ours and not name.startswith("lock.")]
    if foreign and not (folder / RUN_FILE).is_file():
        raise RunChangedError(f"{folder} holds {foreign[0]} and no run; give a new or empty folder")


def _remove_results(folder: Path) -> None:
    """Remove what a run wrote, and nothing else; ``run.json`` first, so that an interrupted removal leaves no run that looks whole."""
    for name in (RUN_FILE, INDEX_FILE, PARQUET_FILE):
        (folder / name).unlink(missing_ok=True)
    for name in (RESULTS_FOLDER, FAILED_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)


def _settle(
    spec: GenerateSpec, sources: Sequence[SourceImage], folder: Path, origin: Mapping[str, str]
) -> tuple[list[SourceImage], dict[str, dict[str, Any]]]:
    """Compare with the ``run.json`` of the folder, or write it; returns the sources and the models with their hashes."""
    try:
        before = read_settings(folder)
    except FileNotFoundError:
        before = None
    states = {} if before is None else before["sources"]
    hashed = [_with_states(source, states.get(source.id), is_new=before is None) for source in sources]
    pipelines = build_pipelines(spec)
    require_keys(pipelines, common_words(sources))
    models = {}
    for kind, model in pipelines.models.items():
        known = {} if before is None else before.get("models", {}).get(kind, {})
        place = model_place(model)
        is_known = known.get("source") == model.source and known.get("state")
        state = None if place is None else file_state(place, FileState(*known["state"]) if is_known else None)
        models[kind] = {"source": model.source, "sha256": "" if state is None else state.sha256, "state": state and list(state)}
    settings = {
        "format": RUN_FORMAT,
        "spec": spec.to_plain(),
        "spec_sha256": spec.sha256,
        "seed": spec.seed,
        "package_version": __version__,
        **origin,
        "sources": {source.id: _states_of(source) for source in hashed},
        "models": models,
    }
    if before is None:
        with whole_file(folder / RUN_FILE) as part:
            part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return hashed, models
    differences = list(_differences(before, settings))
    if differences:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise RunChangedError(
            f"{folder} holds a run that differs: {'; '.join(differences[:SHOWN])}{more}. Give another --out, or --restart to remove its "
            "results"
        )
    return hashed, models


def _with_states(source: SourceImage, known: Mapping[str, Any] | None, *, is_new: bool) -> SourceImage:
    """A source with the hashes of its files; those of a file that has vanished since the run began are the old ones: its jobs will fail."""
    states: list[FileState | None] = []
    for role in ("image", "label"):
        path, before = source.path(role), (known or {}).get(f"{role}_state")
        earlier = None if before is None else FileState(*before)
        if path is None:
            states.append(None)
        elif path.exists():
            states.append(file_state(path, earlier))
        elif is_new or earlier is None:
            raise DatalistError(f"source {source.id!r}: {role} {path} does not exist")
        else:
            logger.warning("source %r: %s %s has vanished; its unfinished jobs will fail", source.id, role, path)
            states.append(earlier)
    return source.with_states(*states)


def _states_of(source: SourceImage) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for role, state in (("image", source.image_state), ("label", source.label_state)):
        if state is not None:
            content |= {f"{role}_sha256": state.sha256, f"{role}_state": list(state)}
    return content


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Each value of ``run.json`` that the results depend on and that is another one now."""
    if before["package_version"] != now["package_version"]:
        yield f"it was made by version {before['package_version']}, this is {now['package_version']}"
    if before["spec_sha256"] != now["spec_sha256"]:
        yield from _spec_differences(before["spec"], now["spec"], "spec")
    for kind in sorted(before["models"].keys() | now["models"].keys()):
        old, new = (side["models"].get(kind, {}) for side in (before, now))
        if old.get("sha256") != new.get("sha256"):
            yield f"the weights of the {kind} {new.get('source', 'model')} are others"
    old_sources, new_sources = before["sources"], now["sources"]
    for id_ in [*old_sources, *(id_ for id_ in new_sources if id_ not in old_sources)]:
        if id_ not in new_sources:
            yield f"source {id_!r} is not in the datalist any more"
        elif id_ not in old_sources:
            yield f"source {id_!r} is new in the datalist"
        else:
            for role in ("image", "label"):
                if old_sources[id_].get(f"{role}_sha256") != new_sources[id_].get(f"{role}_sha256"):
                    yield f"the {role} of source {id_!r} changed"


def _spec_differences(before: Any, now: Any, path: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            if key != "format" or path != "spec":
                yield from _spec_differences(before.get(key), now.get(key), f"{path}::{key}" if path != "spec" else str(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _spec_differences(old, new, f"{path}::{index}")
    elif before != now:
        yield f"{path} was {json.dumps(before)[:60]} and is {json.dumps(now)[:60]}"
