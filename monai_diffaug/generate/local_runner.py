"""Run jobs on this machine: in this process, or in worker processes that load the models once and are replaced when they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from monai_diffaug.errors import one_line
from monai_diffaug.generate.jobs import Job
from monai_diffaug.generate.run_job import FAILED, JobOutcome, JobRunner

__all__ = ["MOST_KILLS", "WorkerError", "run_here", "run_in_processes"]

MOST_KILLS = 3  # of workers by one job, after which the job counts as failed
MOST_EARLY_DEATHS = 3  # of workers in a row before any of them was ready


class WorkerError(RuntimeError):
    """Worker processes cannot start."""


def run_here(settings: Mapping[str, Any], jobs: Iterable[Job]) -> Generator[JobOutcome, None, None]:
    """Run jobs in this process, one after the other; ``settings`` are the arguments of ``JobRunner``."""
    runner = JobRunner(**settings)
    for job in jobs:
        yield runner.run(job)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    is_ready: bool = False
    job: Job | None = None


def run_in_processes(settings: Mapping[str, Any], jobs: Iterable[Job], workers: int) -> Generator[JobOutcome, None, None]:
    """Run jobs in spawned processes; outcomes come in the order in which they end.

    A worker that is killed is replaced and its job is run again, ``MOST_KILLS`` times at most. When the caller stops, the workers are
    stopped; when it is killed, they end by themselves.

    Raises:
        WorkerError: the workers cannot start.
    """
    waiting, kills = deque(jobs), dict[str, int]()
    pool: list[_Worker] = []
    early_deaths = 0
    try:
        while waiting or any(worker.job for worker in pool):
            while len(pool) < min(workers, len(waiting) + sum(worker.job is not None for worker in pool)):
                pool.append(_start(settings))
            for worker in pool:
                if worker.is_ready and worker.job is None and waiting:
                    _hand_out(worker, waiting)
            ready = wait([each for worker in pool for each in (worker.connection, worker.process.sentinel)])
            for worker in [worker for worker in pool if worker.connection in ready or worker.process.sentinel in ready]:
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):  # the worker is dead
                    pool.remove(worker)
                    code = _stop(worker)
                    early_deaths += not worker.is_ready
                    if early_deaths >= MOST_EARLY_DEATHS:
                        raise WorkerError(f"{early_deaths} worker processes ended ({_fate(code)}) before their first job") from None
                    if worker.job is not None:
                        job = worker.job
                        kills[job.name] = kills.get(job.name, 0) + 1
                        if kills[job.name] < MOST_KILLS:
                            waiting.appendleft(job)
                        else:
                            yield JobOutcome(job.name, FAILED, f"its worker process ended: {_fate(code)}", attempts=kills[job.name])
                    continue
                if isinstance(message, str):
                    raise WorkerError(f"a worker process cannot start: {message}")
                worker.job = None
                if not worker.is_ready:
                    worker.is_ready, early_deaths = True, 0
                else:
                    yield message
    finally:
        for worker in pool:
            _stop(worker)


def _start(settings: Mapping[str, Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads and CUDA
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, dict(settings)), name="monai-diffaug-worker", daemon=True)
    process.start()
    there.close()  # else the end of the worker does not close the pipe
    return _Worker(process, here)


def _hand_out(worker: _Worker, waiting: deque[Job]) -> None:
    job = waiting.popleft()
    worker.job = job
    try:
        worker.connection.send(job.to_plain())
    except OSError:  # it died; the next ``wait`` returns its sentinel
        return


def _stop(worker: _Worker) -> int | None:
    """End a worker; returns its exit code."""
    worker.connection.close()
    if worker.job is not None:
        worker.process.kill()
    worker.process.join(timeout=5)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    return worker.process.exitcode


def _fate(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}" + (", perhaps for its memory" if -code == signal.SIGKILL else "")


def _work(connection: Connection, settings: Mapping[str, Any]) -> None:
    """Body of a worker: None when it is ready, then one outcome per job; text if it cannot start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        runner = JobRunner(**settings)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {one_line(error)}")
        return
    connection.send(None)
    while True:
        try:
            job = Job.from_plain(connection.recv())
        except (EOFError, OSError):
            return
        outcome = runner.run(job)
        connection.send(outcome)


def _end_with_parent() -> None:
    """End this process when its parent is killed: a run must not go on without its lock."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
