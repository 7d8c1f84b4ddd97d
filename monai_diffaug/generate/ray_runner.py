"""Run jobs on a Ray cluster: actors that load the models once and pull jobs; only plain data reaches them.

Ray Core's actors with restarts. ``ray.util.ActorPool`` does not say which job was lost with an actor, and drops the actor although Ray
starts it again. In Ray Data an exception in one job ends the data set, and results pass through the object store.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from monai_diffaug.errors import MissingExtraError, one_line
from monai_diffaug.generate.jobs import Job
from monai_diffaug.generate.local_runner import MOST_KILLS, WorkerError
from monai_diffaug.generate.run_job import FAILED, JobOutcome, JobRunner

__all__ = ["require_ray", "run_on_ray"]

POLL_S = 5.0  # after which a run looks for nodes that are gone


class _Actor:
    """One process on the cluster; Ray starts it again, with the same arguments, when it dies."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.runner = JobRunner(**settings)

    def ready(self) -> str:
        """The node that it runs on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return asdict(self.runner.run(Job.from_plain(job)))


def require_ray() -> Any:
    """The module ``ray``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("--ray needs Ray: pip install monai_diffaug[cluster]") from None
    return ray


def run_on_ray(
    settings: Mapping[str, Any], jobs: Iterable[Job], *, address: str | None = None, actors: int | None = None, gpus: float = 0.0
) -> Generator[JobOutcome, None, None]:
    """Run jobs on a Ray cluster; outcomes come in the order in which they end.

    An actor that dies is started again by Ray, and its job is run again, ``MOST_KILLS`` times at most. When a node is gone its jobs go to
    the other actors, since Ray may find no room for its own. So a job may be run twice, which its atomic and deterministic result makes
    harmless.

    Args:
        settings: arguments of ``JobRunner``; the folder must be on a disk that all nodes share, under the same path.
        jobs: to run.
        address: of the cluster; None takes the one of ``RAY_ADDRESS``, else starts Ray on this machine.
        actors: number of actors; None takes as many as the cluster has room for.
        gpus: of each actor, e.g. 0.25 for four actors on one GPU.

    Raises:
        MissingExtraError: Ray is not installed.
        WorkerError: the cluster cannot be reached, or the actors cannot start.
    """
    ray = require_ray()
    waiting = deque(jobs)
    if not waiting:
        return
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            starts_here = address is None and "RAY_ADDRESS" not in os.environ
            ray.init(address=address, include_dashboard=False if starts_here else None, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise WorkerError(f"no Ray cluster at {address or 'this machine'}: {one_line(error)}") from error
    try:
        yield from _run_on_actors(ray, settings, waiting, actors, gpus)
    finally:
        if is_ours:
            ray.shutdown()


def _run_on_actors(
    ray: Any, settings: Mapping[str, Any], waiting: deque[Job], actors: int | None, gpus: float
) -> Generator[JobOutcome, None, None]:
    cpus = int(settings["spec"].get("threads", 1))
    count = min(actors or _room(ray, cpus, gpus), len(waiting))
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": MOST_KILLS - 1}
    pool = [ray.remote(_Actor).options(**options).remote(dict(settings)) for _ in range(count)]
    starting = {actor.ready.remote(): i for i, actor in enumerate(pool)}
    busy: dict[Any, tuple[int, Job]] = {}
    nodes: dict[int, str] = {}  # number of an actor -> node on which it started
    idle: deque[int] = deque()
    total, ended, handed_over = len(waiting), set[str](), set[str]()
    try:
        while len(ended) < total:
            while idle and waiting:
                job = waiting.popleft()
                if job.name not in ended:
                    number = idle.popleft()
                    busy[pool[number].run.remote(job.to_plain())] = (number, job)
            done, _ = ray.wait([*starting, *busy], num_returns=1, timeout=POLL_S)
            if not done:  # an actor whose node is gone waits for room on another: others do its job
                alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
                lost = [job for number, job in busy.values() if nodes[number] not in alive and job.name not in handed_over]
                waiting.extend(lost)
                handed_over.update(job.name for job in lost)
                continue
            reference = done[0]
            if reference in starting:
                number = starting.pop(reference)
                try:
                    nodes[number] = ray.get(reference)
                except ray.exceptions.RayError as error:
                    raise WorkerError(f"an actor cannot start: {one_line(error)}") from error
            else:
                number, job = busy.pop(reference)
                try:
                    outcome = JobOutcome(**ray.get(reference))
                except ray.exceptions.RayError as error:  # killed MOST_KILLS times; an exception of the job comes as an outcome
                    outcome = JobOutcome(job.name, FAILED, f"its actor died: {one_line(error)}", attempts=MOST_KILLS)
                if job.name not in ended:
                    ended.add(job.name)
                    yield outcome
            idle.append(number)
    finally:
        for actor in pool:
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)


def _room(ray: Any, cpus: int, gpus: float) -> int:
    """Number of actors that the cluster has room for, 1 at least."""
    resources = ray.cluster_resources()
    by_cpus = int(resources.get("CPU", 1)) // cpus
    return max(1, min(by_cpus, int(resources.get("GPU", 0) / gpus)) if gpus else by_cpus)
