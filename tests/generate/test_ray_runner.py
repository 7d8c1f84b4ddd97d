"""Ray actors: the same files as in one process, also when actors or the process of a node are killed. Skipped without Ray."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from monai_diffaug.errors import MissingExtraError
from monai_diffaug.generate.generate_run import RunCounts, Runner, generate_run
from monai_diffaug.generate.ray_runner import require_ray
from monai_diffaug.generate.run_folder import finished_jobs, read_run
from monai_diffaug.generate.run_job import part_folders
from monai_diffaug.generate.source_images import read_sources
from monai_diffaug.generate.spec import spec_of_config
from tests.generate.tiny_runs import PIPELINE, SPEC, hashes_of, until, write_sources

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="Ray is not installed: pip install monai_diffaug[cluster]")
PLACE = {**PIPELINE[0], "size_range": [0.02, 0.03]}
LARGE: dict[str, Any] = {**SPEC, "pipeline": [PLACE, *PIPELINE[1:]]}  # pictures that take long to write


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install monai_diffaug\[cluster\]"):
        require_ray()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("whole")
    datalist = write_sources(folder / "data", 3, side=1200)
    make(datalist, folder / "run", Runner())
    return datalist, hashes_of(folder / "run")


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def make(datalist: Path, folder: Path, runner: Runner) -> RunCounts:
    return generate_run(spec_of_config(LARGE), read_sources(datalist), folder, runner=runner)


def actors() -> list[psutil.Process]:
    """Processes of the actors: Ray names them after the class."""
    return [each for each in psutil.process_iter(["name", "cmdline"]) if "ray::_Actor" in " ".join(each.info["cmdline"] or ())]


def kill_when(condition: Any, processes: Any, killed: list[int]) -> threading.Thread:
    """Kill processes once a condition holds, while the run goes on."""

    def body() -> None:
        until(condition)
        for each in processes():
            killed.append(each.pid)
            os.kill(each.pid, signal.SIGKILL)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


@needs_ray
@pytest.mark.slow
def test_killed_actors_are_started_again_and_their_jobs_run_again(
    whole: tuple[Path, dict[str, str]], tmp_path: Path, local_ray: None
) -> None:
    datalist, hashes = whole
    killed: list[int] = []
    killer = kill_when(lambda: part_folders(tmp_path / "run/results"), actors, killed)
    counts = make(datalist, tmp_path / "run", Runner(workers=2, ray=""))
    killer.join()
    assert killed and (counts.accepted, counts.failed) == (6, 0)
    assert hashes_of(tmp_path / "run") == hashes and not part_folders(tmp_path / "run/results")


@needs_ray
@pytest.mark.slow
def test_a_job_whose_actor_always_dies_fails_and_the_others_end(tmp_path: Path, local_ray: None) -> None:
    datalist = write_sources(tmp_path / "data", 2)
    die = "$lambda data: __import__('os').kill(__import__('os').getpid(), 9) if data['id'] == 'scan 0.png' else data"
    spec = {**SPEC, "copies": 1, "pipeline": [{"_target_": "Lambda", "func": die}, *PIPELINE]}
    counts = generate_run(spec_of_config(spec), read_sources(datalist), tmp_path / "run", runner=Runner(workers=1, ray=""))
    assert (counts.accepted, counts.failed) == (1, 1)
    (failure,) = read_run(tmp_path / "run").failures
    assert failure.attempts == 3 and failure.error.startswith("its actor died")


@needs_ray
@pytest.mark.slow
def test_a_node_whose_process_is_killed_loses_no_job(whole: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    datalist, hashes = whole
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        killed: list[int] = []
        raylet = node.all_processes["raylet"][0].process
        killer = kill_when(lambda: len(finished_jobs(tmp_path / "run")) >= 1, lambda: [raylet], killed)
        counts = make(datalist, tmp_path / "run", Runner(workers=2, ray=""))
        killer.join()
        assert killed and (counts.accepted, counts.failed) == (6, 0)
        assert hashes_of(tmp_path / "run") == hashes
    finally:
        ray.shutdown()
        cluster.shutdown()


@needs_ray
@pytest.mark.slow
def test_one_two_and_four_actors_give_the_same_files(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 4)
    spec, sources = spec_of_config(SPEC), read_sources(datalist)
    generate_run(spec, sources, tmp_path / "here")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        for count in (1, 2, 4):
            start = time.monotonic()
            assert generate_run(spec, sources, tmp_path / str(count), runner=Runner(workers=count, ray="")).accepted == 8
            print(f"{count} actors: {time.monotonic() - start:.1f} s")
            assert hashes_of(tmp_path / str(count)) == hashes_of(tmp_path / "here")
    finally:
        ray.shutdown()
