"""The plan: numbers, names, and estimates from trial edits that write nothing to the run folder."""

import math
from pathlib import Path

import pytest
from PIL import Image

from monai_diffaug.generate.generate_run import generate_run
from monai_diffaug.generate.run_plan import plan_run
from monai_diffaug.generate.source_images import DatalistError, read_sources
from monai_diffaug.generate.spec import spec_of_config
from tests.generate.tiny_runs import SPEC, write_sources


def test_the_plan_counts_the_jobs_and_writes_nothing(tmp_path: Path) -> None:
    sources = read_sources(write_sources(tmp_path / "data"))
    plan = plan_run(spec_of_config({**SPEC, "normal": 0.5}), sources, tmp_path / "run")
    assert len(plan.jobs) == 6 and plan.controls == 3 and plan.done == 0 and not plan.failures and not (tmp_path / "run").exists()
    assert plan.job_seconds > 0 and plan.seconds(2) == pytest.approx(3 * plan.job_seconds)
    generate_run(spec_of_config({**SPEC, "normal": 0.5}), sources, tmp_path / "run")
    written = sum(file.stat().st_size for file in (tmp_path / "run/results").rglob("*.png"))
    assert plan.bytes_needed == pytest.approx(written, rel=0.1) and plan.bytes_free > 0
    after = plan_run(spec_of_config({**SPEC, "normal": 0.5}), sources, tmp_path / "run")
    assert (after.done, after.bytes_needed, after.seconds(1)) == (6, 0, 0.0) and not math.isnan(after.job_seconds)


def test_failures_of_trial_edits_and_missing_sources_are_told(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 1)
    Image.new("L", (8, 8)).save(tmp_path / "data/scan 0_label.png")
    plan = plan_run(spec_of_config(SPEC), read_sources(datalist), tmp_path / "run", shard=(0, 2))
    assert len(plan.jobs) == 1 and len(plan.failures) == 1 and "not on the grid" in plan.failures[0]
    (tmp_path / "data/scan 0.png").unlink()
    with pytest.raises(DatalistError, match="does not exist"):
        plan_run(spec_of_config(SPEC), read_sources(datalist), tmp_path / "run")
