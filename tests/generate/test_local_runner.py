"""Worker processes: killed workers, a killed driver, and the same files as in one process. Real processes, so most tests are slow."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from monai_diffaug.commands.cli import main
from monai_diffaug.generate.local_runner import MOST_KILLS, WorkerError, run_in_processes
from monai_diffaug.generate.run_folder import read_run
from monai_diffaug.generate.run_job import part_folders
from tests.generate.tiny_runs import PIPELINE, hashes_of, start, until, write_sources, write_spec

# a transform that ends the process of the worker for one source, in the folder that the workers import from
KILLER = """
import os, signal
from monai.transforms import MapTransform

class Killd(MapTransform):
    def __init__(self, keys, marker=""):
        super().__init__(keys)
        self.marker = marker

    def __call__(self, data):
        if data["id"] == "scan 0.png" and not (self.marker and os.path.exists(self.marker)):
            if self.marker:
                open(self.marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return data
"""


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The spawned workers; the resource tracker of multiprocessing is no worker."""
    return [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """Pictures that take long to write, their spec, and the hashes of a whole run in this process."""
    folder = tmp_path_factory.mktemp("large")
    datalist = write_sources(folder / "data", 2, side=1600)
    place = {**PIPELINE[0], "size_range": [0.02, 0.03]}
    spec = write_spec(folder / "spec.json", pipeline=[place, *PIPELINE[1:]])
    assert main(["generate", str(spec), "--data", str(datalist), "--out", str(folder / "run"), "-q"]) == 0
    return datalist, spec, hashes_of(folder / "run")


@pytest.mark.slow
def test_a_worker_killed_in_a_write_is_replaced_and_its_job_is_run_again(large: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    datalist, spec, hashes = large
    process = start(spec, "--data", datalist, "--out", tmp_path / "run", "--workers", 2)
    until(lambda: part_folders(tmp_path / "run/results"), process)
    for worker in workers_of(process):
        worker.send_signal(signal.SIGKILL)
    out, error = process.communicate()
    assert process.returncode == 0 and "4 accepted, 0 filtered, 0 failed of 4 jobs" in out, error
    assert hashes_of(tmp_path / "run") == hashes and not part_folders(tmp_path / "run/results")


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_half_its_workers_end_and_the_next_run_goes_on(
    large: tuple[Path, Path, dict[str, str]], tmp_path: Path
) -> None:
    datalist, spec, hashes = large
    process = start(spec, "--data", datalist, "--out", tmp_path / "run", "--workers", 2)
    until(lambda: part_folders(tmp_path / "run/results"), process)
    workers = workers_of(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers), seconds=20)
    half = hashes_of(tmp_path / "run")
    assert len(workers) == 2 and len(half) < 12 and half.items() <= hashes.items()
    assert main(["generate", str(spec), "--data", str(datalist), "--out", str(tmp_path / "run"), "--workers", "2", "-q"]) == 0
    assert hashes_of(tmp_path / "run") == hashes and not part_folders(tmp_path / "run/results")


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_the_next_run_goes_on(large: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    datalist, spec, hashes = large
    process = start(spec, "--data", datalist, "--out", tmp_path / "run", "--workers", 2)
    until(lambda: part_folders(tmp_path / "run/results"), process)
    workers = workers_of(process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130 and "interrupted" in error and not any(worker.is_running() for worker in workers)
    assert not part_folders(tmp_path / "run/results") and (tmp_path / "run/index.jsonl").is_file()
    again = start(spec, "--data", datalist, "--out", tmp_path / "run")
    assert again.wait() == 0 and hashes_of(tmp_path / "run") == hashes


@pytest.mark.slow
def test_two_drivers_on_one_folder_and_the_second_is_refused_with_the_pid_of_the_first(
    large: tuple[Path, Path, dict[str, str]], tmp_path: Path
) -> None:
    datalist, spec, _ = large
    first = start(spec, "--data", datalist, "--out", tmp_path / "run")
    until(lambda: part_folders(tmp_path / "run/results"), first)
    first.send_signal(signal.SIGSTOP)  # it is still at work when the second one has started
    second = start(spec, "--data", datalist, "--out", tmp_path / "run")
    _, error = second.communicate()
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and f"is in use by pid {first.pid} on {os.uname().nodename}" in error
    assert first.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("once", [True, False])
def test_a_job_that_kills_its_workers_fails_alone_after_three_of_them(tmp_path: Path, once: bool) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    killer = {"_target_": "killer.Killd", "keys": "image", "marker": str(tmp_path / "marker") if once else ""}
    datalist = write_sources(tmp_path / "data", 3)
    spec = write_spec(tmp_path / "spec.json", copies=1, pipeline=[killer, *PIPELINE])
    process = start(spec, "--data", datalist, "--out", tmp_path / "run", "--workers", 1, module=tmp_path)
    out, error = process.communicate()
    assert process.returncode == (0 if once else 1) and f"{3 if once else 2} accepted" in out, error
    failures = read_run(tmp_path / "run").failures
    assert [(each.attempts, each.error) for each in failures] == (
        [] if once else [(MOST_KILLS, "its worker process ended: killed by SIGKILL, perhaps for its memory")]
    )


@pytest.mark.slow
def test_workers_that_cannot_start_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="cannot start: SpecError: pipeline must be a list"):
        list(run_in_processes({"spec": {"pipeline": []}, "folder": str(tmp_path)}, [_job(tmp_path)], 1))


def _job(folder: Path):
    from monai_diffaug.generate.jobs import plan_jobs
    from monai_diffaug.generate.source_images import read_sources

    return plan_jobs(read_sources(write_sources(folder / "data", 1)), seed=0, copies=1, normal=0)[0]


def test_without_jobs_no_process_is_started() -> None:
    assert list(run_in_processes({}, [], 4)) == []
