"""Figures of bulk generation on this machine: throughput, memory, overhead per job, and the time until a continued run works.

python benchmarks/generate_run.py throughput memory overhead restart
python benchmarks/generate_run.py throughput --ray
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from monai_diffaug.generate.generate_run import RunCounts, Runner, generate_run
from monai_diffaug.generate.job_record import JobRecord
from monai_diffaug.generate.jobs import Job, plan_jobs
from monai_diffaug.generate.run_job import JobOutcome, JobRunner, fixed_numerics
from monai_diffaug.generate.source_images import SourceImage, load_source, read_sources
from monai_diffaug.generate.spec import GenerateSpec, spec_of_config

PRESET = {"preset": "diffaug", "modality": "ultrasound", "anatomy": "breast", "finding": "benign mass", "max_tries": 1}


def write_sources(folder: Path, count: int, side: int) -> list[SourceImage]:
    """Pictures of noise with an empty label."""
    rows = []
    for i in range(count):
        Image.fromarray(np.random.RandomState(i).randint(40, 200, (side, side), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png"})
    (folder / "datalist.json").write_text(json.dumps({"training": rows}))
    return read_sources(folder / "datalist.json")


def spec_with(steps: int, copies: int) -> GenerateSpec:
    """DiffAug with one candidate per job."""
    return spec_of_config({"copies": copies, "pipeline": {**PRESET, "num_inference_steps": steps}})


def throughput(folder: Path, use_ray: bool, jobs: int) -> None:
    """Jobs per minute of 1 and 2 workers after the first job of each has ended, so that starting them does not count."""
    spec, sources = spec_with(12, 1), write_sources(folder, jobs, 256)
    rates = {}
    for workers in (1, 2, 4) if use_ray else (1, 2):
        ends: list[float] = []

        def note(counts: RunCounts, ends: list[float] = ends) -> None:
            if counts.ended:
                ends.append(time.monotonic())

        generate_run(spec, sources, folder / f"run{workers}", runner=Runner(workers, "" if use_ray else None), progress=note)
        rates[workers] = 60 * (len(ends) - workers) / (ends[-1] - ends[workers - 1])
        print(
            f"{'Ray actors' if use_ray else 'processes'} {workers}: {rates[workers]:.1f} jobs per minute, x{rates[workers] / rates[1]:.2f}"
        )


def memory(folder: Path, jobs: int) -> None:
    """Growth of a worker's memory per 100 jobs, after the first 50."""
    runner = JobRunner(spec_with(1, 1).to_plain(), str(folder / "run"))
    process, sizes = psutil.Process(), []
    for job in plan_jobs(write_sources(folder, jobs, 64), seed=0, copies=1, normal=0):
        runner.run(job)
        sizes.append(process.memory_info().rss / 1e6)
    slope = np.polyfit(np.arange(50, len(sizes)), sizes[50:], 1)[0] * 100
    marks = f"{sizes[0]:.0f} MB after 1 job, {sizes[49]:.0f} after 50, {sizes[-1]:.0f} after {jobs}"
    print(f"memory: {marks}; {slope:+.2f} MB per 100 jobs after the first 50")


def overhead(folder: Path, jobs: int) -> None:
    """CPU time of a job over that of its transforms alone, which get the loaded sample; the two take turns."""
    runner = JobRunner(spec_with(12, 1).to_plain(), str(folder / "run"))
    plan = plan_jobs(write_sources(folder, jobs, 256), seed=0, copies=1, normal=0)
    bare, whole = [], []
    for job in [plan[0], *plan]:  # the first one loads the models and does not count
        chain, sample = runner.pipelines.by_kind[job.kind].chain, load_source(job.source).sample
        chain.set_random_state(seed=job.seed)
        start = time.process_time()
        with fixed_numerics(1, job.seed), torch.no_grad():
            chain(dict(sample))
        middle = time.process_time()
        runner.run(job)
        bare.append(middle - start)
        whole.append(time.process_time() - middle)
    added = [each - alone for each, alone in zip(whole[2:], bare[2:], strict=True)]
    share = sum(added) / sum(bare[2:])
    alone_s, added_ms = statistics.median(bare[2:]), 1000 * statistics.median(added)
    print(f"overhead: {alone_s:.3f} s CPU alone, {added_ms:.1f} ms more as a job, {share:+.1%} in all")


class FirstJob(Runner):
    """Notes when the first job would begin, and runs none."""

    began = cpu = 0.0

    def outcomes(self, settings: Mapping[str, Any], jobs: Sequence[Job]) -> Generator[JobOutcome, None, None]:
        """No outcome."""
        JobRunner(**settings)
        FirstJob.began, FirstJob.cpu = time.monotonic(), time.process_time()
        return
        yield


def restart(folder: Path, jobs: int) -> None:
    """Time from the call until the first new job begins, when all other jobs are finished; imports and models do not count."""
    copies = 10
    spec, sources = spec_with(12, copies), write_sources(folder, jobs // copies + 1, 64)
    generate_run(spec, sources, folder / "run", runner=FirstJob())
    plan = plan_jobs(sources, seed=spec.seed, copies=copies, normal=0)
    for job in plan[:jobs]:
        place = folder / "run/results" / job.name
        place.mkdir()
        record = JobRecord(job.name, job.source.id, job.copy, job.seed, "filtered", job.kind, reason="a record of the benchmark")
        (place / "record.json").write_text(record.to_json())
    start, cpu = time.monotonic(), time.process_time()
    counts = generate_run(spec, sources, folder / "run", runner=FirstJob())
    first = f"first new job after {FirstJob.began - start:.2f} s ({FirstJob.cpu - cpu:.2f} s CPU)"
    index = f"{time.process_time() - FirstJob.cpu:.2f} s CPU for the index"
    print(f"restart: {counts.done_before} finished jobs of {len(sources)} sources, {first}, {index}")


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("throughput", "memory", "overhead", "restart"))
    parser.add_argument("--ray", action="store_true", help="throughput of 1, 2 and 4 Ray actors")
    parser.add_argument("--jobs", type=int, default=0, help="number of jobs; default 24, 500, 20 and 10 000")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    for part in options.parts:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if part == "throughput":
                throughput(folder, options.ray, options.jobs or 24)
            elif part == "memory":
                memory(folder, options.jobs or 500)
            elif part == "overhead":
                overhead(folder, options.jobs or 20)
            else:
                restart(folder, options.jobs or 10_000)


if __name__ == "__main__":
    main()
