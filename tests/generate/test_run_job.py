"""One job: what it writes, that it is the same in any order, and that nothing half is left."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.generate import run_job
from monai_diffaug.generate.job_record import JobRecord
from monai_diffaug.generate.jobs import Job, plan_jobs
from monai_diffaug.generate.run_job import JobRunner, part_folders
from monai_diffaug.generate.source_images import read_sources
from monai_diffaug.generate.spec import spec_of_config
from tests.generate.tiny_runs import PAINT, PIPELINE, PLACE, SPEC, TEXT, write_sources, write_volume

JUDGE = {"_target_": "monai_diffaug.LatentValidated", "keys": "image", "label_key": "label", "inpaint": PAINT, "on_reject": "retry"}


def runner_of(folder: Path, **changes: Any) -> JobRunner:
    return JobRunner(
        spec_of_config({**SPEC, **changes}).to_plain(), str(folder), models={"inpainter": {"source": "tiny", "sha256": "f" * 64}}
    )


def jobs_of(datalist: Path, normal: float = 0.0, copies: int = 2) -> list[Job]:
    return plan_jobs(read_sources(datalist), seed=5, copies=copies, normal=normal)


def record_of(runner: JobRunner, job: Job) -> JobRecord:
    return JobRecord.from_json((runner.results / job.name / "record.json").read_text())


def content(runner: JobRunner, job: Job) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (runner.results / job.name).iterdir() if file.name != "record.json"}


def test_a_result_is_on_the_grid_of_its_source_and_its_label_shows_the_mask(tmp_path: Path) -> None:
    runner, job = runner_of(tmp_path / "run"), jobs_of(write_sources(tmp_path / "data", 1))[0]
    assert runner.run(job).state == "accepted"
    record, folder = record_of(runner, job), runner.results / job.name
    source, image, label, mask = (
        np.asarray(Image.open(file))
        for file in (tmp_path / "data/scan 0.png", folder / "image.png", folder / "label.png", folder / "mask.png")
    )
    assert image.dtype == np.uint8 and image.shape == source.shape and set(np.unique(mask)) == {0, 255}
    assert (label[mask > 0] == 1).all() and set(np.unique(label)) == {0, 1, 2} and (image != source)[mask > 0].any()
    assert (record.kind, record.label_value, record.seed, record.copy) == ("lesion", 1, job.seed, 0)
    assert record.finding in ("benign mass", "malignant mass") and record.finding in record.prompt
    assert record.figures["lesion_area_mm2"] == (mask > 0).sum() and 0 < record.figures["local_ssim"] < 1
    assert record.source["group"] == "p0" and record.source["fold"] == 0 and record.model_sha256 == "f" * 64
    assert json.loads(record.to_json())["edit"]["applied"] is True and record.donor is None


def test_a_volume_keeps_its_affine_and_type_and_gets_a_label(tmp_path: Path) -> None:
    runner, job = runner_of(tmp_path / "run"), jobs_of(write_volume(tmp_path / "data"))[0]
    assert runner.run(job).state == "accepted", runner.run(job)
    image, label = (nib.load(runner.results / job.name / f"{role}.nii.gz") for role in ("image", "label"))
    assert (
        image.get_data_dtype() == np.int16 and np.allclose(image.affine, np.diag([0.5, 0.5, 3, 1])) and label.get_data_dtype() == np.uint8
    )
    voxels = int((np.asarray(label.dataobj) == 1).sum())
    assert record_of(runner, job).figures["lesion_volume_ml"] == pytest.approx(voxels * 0.75 / 1000) and voxels


def test_results_do_not_depend_on_order_process_state_or_other_jobs(tmp_path: Path) -> None:
    jobs = jobs_of(write_sources(tmp_path / "data", 2))
    first, second = runner_of(tmp_path / "one"), runner_of(tmp_path / "two")
    for job in jobs:
        first.run(job)
    torch.manual_seed(99)
    np.random.seed(99)
    before = torch.rand(1), np.random.rand()
    torch.manual_seed(99)
    np.random.seed(99)
    for job in reversed(jobs):
        second.run(job)
    assert (torch.rand(1), np.random.rand()) == before  # the caller's random numbers go on as if nothing had run
    assert all(content(first, job) == content(second, job) and len(content(first, job)) == 3 for job in jobs)
    assert len({content(first, job)["image.png"] for job in jobs}) == 4


def test_a_control_repaints_normal_tissue_and_leaves_the_label(tmp_path: Path) -> None:
    runner, job = runner_of(tmp_path / "run", normal=1.0), jobs_of(write_sources(tmp_path / "data", 1), normal=1.0)[0]
    assert runner.run(job).state == "accepted"
    record, folder = record_of(runner, job), runner.results / job.name
    assert (record.kind, record.finding, record.label_value) == ("control", "", 0) and record.prompt.endswith("normal tissue")
    assert (np.asarray(Image.open(folder / "label.png")) == np.asarray(Image.open(tmp_path / "data/scan 0_label.png"))).all()
    assert (np.asarray(Image.open(folder / "image.png")) != np.asarray(Image.open(tmp_path / "data/scan 0.png"))).any()
    assert "lesion_area_mm2" not in record.figures


@pytest.mark.parametrize(("judge", "files"), [({"max_tries": 2}, 0), ({"on_reject": "drop"}, 0), ({"max_tries": 2, "keep": True}, 3)])
def test_a_rejected_result_is_filtered_with_its_reason(tmp_path: Path, judge: dict[str, Any], files: int) -> None:
    keep = judge.pop("keep", False)
    never = {**JUDGE, "min_dice": 1.0, **judge}
    runner = runner_of(tmp_path / "run", pipeline=[*PIPELINE[:2], never], keep_filtered=keep)
    job = jobs_of(write_sources(tmp_path / "data", 1))[0]
    outcome = runner.run(job)
    record = record_of(runner, job)
    assert outcome.state == record.state == "filtered" and record.reason and len(record.files) == len(content(runner, job)) == files


def test_a_sample_without_a_free_place_is_filtered(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 1)
    Image.fromarray(np.full((64, 64), 2, np.uint8)).save(tmp_path / "data/scan 0_label.png")
    runner, job = runner_of(tmp_path / "run"), jobs_of(datalist)[0]
    assert runner.run(job).state == "filtered" and "no free place" in record_of(runner, job).reason


def test_an_exception_fails_the_job_after_its_retries_and_leaves_nothing(tmp_path: Path) -> None:
    runner, job = runner_of(tmp_path / "run"), jobs_of(write_sources(tmp_path / "data", 1))[0]
    runner.retries = 2
    (tmp_path / "data/scan 0.png").unlink()
    outcome = runner.run(job)
    assert (outcome.state, outcome.attempts, outcome.disk_full) == ("failed", 3, False)
    assert outcome.error.startswith("ImageFileError: ") and "no such file" in outcome.error and "load_source" in outcome.traceback
    assert not list((tmp_path / "run").rglob("*.png"))


def test_a_retry_may_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, job = runner_of(tmp_path / "run"), jobs_of(write_sources(tmp_path / "data", 1))[0]
    runner.retries = 1
    errors: Iterator[Exception] = iter([OSError(errno.EIO, "bad cable")])
    load = run_job.load_source

    def flaky(source: Any) -> Any:
        for error in errors:
            raise error
        return load(source)

    monkeypatch.setattr(run_job, "load_source", flaky)
    outcome = runner.run(job)
    assert (outcome.state, outcome.attempts) == ("accepted", 2)


def test_a_full_disk_leaves_no_part_of_a_result_and_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, job = runner_of(tmp_path / "run"), jobs_of(write_sources(tmp_path / "data", 1))[0]
    runner.retries = 5

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_job, "write_label", full)  # after the image has been written
    outcome = runner.run(job)
    assert (outcome.state, outcome.attempts, outcome.disk_full) == ("failed", 1, True) and not list(runner.results.iterdir())
    monkeypatch.undo()
    assert runner.run(job).state == "accepted"


def test_a_finished_job_is_not_run_again_and_the_first_of_two_workers_wins(tmp_path: Path) -> None:
    runner, job = runner_of(tmp_path / "run"), jobs_of(write_sources(tmp_path / "data", 1))[0]
    runner.run(job)
    before = (runner.results / job.name / "record.json").stat().st_mtime_ns
    (tmp_path / "data/scan 0.png").unlink()
    assert runner.run(job).state == "accepted"
    with run_job.part_folder(runner.results / job.name) as part:
        (part / "record.json").write_text("{}")
    assert (runner.results / job.name / "record.json").stat().st_mtime_ns == before and len(list(runner.results.iterdir())) == 1


def test_part_folders_name_their_jobs(tmp_path: Path) -> None:
    (tmp_path / ".scan-1.part-2-000.part-abc").mkdir()
    (tmp_path / "scan").mkdir()
    assert part_folders(tmp_path) == {tmp_path / ".scan-1.part-2-000.part-abc": "scan-1.part-2-000"} and part_folders(tmp_path / "no") == {}


def test_a_pipeline_that_crops_is_refused(tmp_path: Path) -> None:
    crop = {"_target_": "CenterSpatialCropd", "keys": ["image", "label", "mask"], "roi_size": [32, 32]}
    place, text = PLACE, {**TEXT, "finding": "benign mass"}
    runner = runner_of(tmp_path / "run", pipeline=[place, text, PAINT, crop])
    outcome = runner.run(jobs_of(write_sources(tmp_path / "data", 1))[0])
    assert outcome.state == "failed" and "the pipeline changed the grid" in outcome.error
