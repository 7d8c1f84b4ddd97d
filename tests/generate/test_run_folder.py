"""Reading a run folder: finished jobs, failures, and clear errors for what is no run."""

import json
from pathlib import Path

import pytest

from monai_diffaug.generate.job_record import JobRecord, RecordError
from monai_diffaug.generate.run_folder import finished_jobs, read_run


def write_run(folder: Path, states: dict[str, str]) -> Path:
    (folder / "failed").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"format": 1, "seed": 3}))
    for job, state in states.items():
        if state == "failed":
            (folder / f"failed/{job}.json").write_text(json.dumps({"job": job, "error": "e", "attempts": 1, "traceback": "t"}))
            continue
        (folder / "results" / job).mkdir(parents=True)
        record = JobRecord(job=job, source_id="s", copy=0, seed=1, state=state, kind="lesion", files={"image": "image.png"})
        (folder / "results" / job / "record.json").write_text(record.to_json())
    return folder


def test_records_and_failures_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", {"b": "accepted", "a": "filtered", "d": "failed", "c": "accepted"}))
    assert [record.job for record in run.records] == ["a", "b", "c"] and [each.job for each in run.failures] == ["d"]
    assert [record.job for record in run.accepted] == ["b", "c"] and [record.job for record in run.filtered] == ["a"]
    assert run.settings["seed"] == 3
    assert run.file(run.records[1], "image") == tmp_path / "run/results/b/image.png"


def test_folders_without_a_record_and_hidden_ones_are_not_finished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"a": "accepted"})
    (folder / "results/b").mkdir()
    (folder / "results/.c.part").mkdir()
    (folder / "results/.c.part/record.json").write_text("{}")
    assert finished_jobs(folder) == ["a"] and finished_jobs(tmp_path / "none") == []


def test_a_failure_of_a_job_that_succeeded_later_is_not_reported(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"a": "accepted", "b": "failed"})
    (folder / "failed/a.json").write_text(json.dumps({"job": "a", "error": "e", "attempts": 1, "traceback": "t"}))
    assert [failure.job for failure in read_run(folder).failures] == ["b"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder of `monai-diffaug generate`"):
        read_run(tmp_path)
    folder = write_run(tmp_path / "run", {"a": "accepted"})
    (folder / "results/a/record.json").write_text("{")
    with pytest.raises(RecordError, match=r"results/a/record.json: a record that is no JSON"):
        read_run(folder)
    (folder / "run.json").write_text('{"format": 9}')
    with pytest.raises(RecordError, match="run.json is of format 9, this version reads 1"):
        read_run(folder)
