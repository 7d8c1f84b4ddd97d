"""A run: continued, refused when something changed, in shards, and equal to one whole run whatever interrupted it."""

import json
from pathlib import Path
from typing import Any

import pytest

from monai_diffaug.generate.generate_run import RunChangedError, RunCounts, Runner, generate_run
from monai_diffaug.generate.run_folder import read_run
from monai_diffaug.generate.run_lock import RunLockedError, lock_run
from monai_diffaug.generate.source_images import DatalistError, read_sources
from monai_diffaug.generate.spec import SpecError, spec_of_config
from tests.generate.tiny_runs import PAINT, PIPELINE, PLACE, SPEC, hashes_of, write_sources


def make(datalist: Path, folder: Path, *, changes: dict[str, Any] | None = None, **options: Any) -> RunCounts:
    return generate_run(spec_of_config({**SPEC, **(changes or {})}), read_sources(datalist), folder, datalist=str(datalist), **options)


class StopError(Exception):
    """Stands for Ctrl-C."""


def stop_after(count: int) -> Any:
    def progress(counts: RunCounts) -> None:
        if counts.ended == count:
            raise StopError

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """Datalist, folder of a whole run and the hashes of its files."""
    folder = tmp_path_factory.mktemp("whole")
    datalist = write_sources(folder / "data")
    assert make(datalist, folder / "run").accepted == 6
    return datalist, folder / "run", hashes_of(folder / "run")


def test_a_run_holds_its_settings_its_records_and_an_index(whole: tuple[Path, Path, dict[str, str]]) -> None:
    datalist, folder, hashes = whole
    run = read_run(folder)
    assert len(run.records) == 6 and len(hashes) == 18 and not run.failures and len((folder / "index.jsonl").read_text().splitlines()) == 6
    assert (
        run.settings["datalist"] == str(datalist) and run.settings["spec"]["copies"] == 2 and run.settings["models"]["inpainter"]["sha256"]
    )
    assert set(run.settings["sources"]) == {"scan 0.png", "scan 1.png", "scan 2.png"}
    assert run.settings["sources"]["scan 0.png"]["image_sha256"] == run.records[0].source["image_sha256"]


def test_two_interrupted_runs_give_the_files_of_one_whole_run(whole: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    datalist, _, hashes = whole
    with pytest.raises(StopError):
        make(datalist, tmp_path / "run", progress=stop_after(2))
    assert len(read_run(tmp_path / "run").records) == 2 and len((tmp_path / "run/index.jsonl").read_text().splitlines()) == 2
    with pytest.raises(StopError):
        make(datalist, tmp_path / "run", progress=stop_after(3))
    counts = make(datalist, tmp_path / "run")
    assert (counts.total, counts.done_before, counts.accepted) == (6, 5, 1) and hashes_of(tmp_path / "run") == hashes


def test_shards_in_one_folder_give_the_files_of_one_whole_run(whole: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    datalist, _, hashes = whole
    for index in (1, 0):
        assert make(datalist, tmp_path / "run", shard=(index, 2)).total == 3
    assert hashes_of(tmp_path / "run") == hashes and len((tmp_path / "run/index.jsonl").read_text().splitlines()) == 6


def test_a_finished_run_is_not_run_again(whole: tuple[Path, Path, dict[str, str]]) -> None:
    datalist, folder, hashes = whole
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*")}
    assert (counts := make(datalist, folder)).done_before == 6 and counts.ended == 0 and hashes_of(folder) == hashes
    assert {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, r"run holds a run that differs: seed was 5 and is 6. Give another --out, or --restart"),
        ({"copies": 3, "normal": 0.5}, r"copies was 2 and is 3; normal was 0.0 and is 0.5"),
        ({"pipeline": [*PIPELINE[:2], PAINT]}, r"pipeline::2::guidance_scale was 1 and is null"),
    ],
)
def test_another_spec_is_refused_with_what_differs(whole: tuple[Path, Path, dict[str, str]], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunChangedError, match=message):
        make(whole[0], whole[1], changes=changes)
    assert len(read_run(whole[1]).records) == 6


def test_changed_sources_are_named_and_a_restart_makes_them_all_again(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 2)
    make(datalist, tmp_path / "run", changes={"copies": 1})
    before = hashes_of(tmp_path / "run")
    label = tmp_path / "data/scan 1_label.png"
    label.write_bytes((tmp_path / "data/scan 1.png").read_bytes())
    with pytest.raises(RunChangedError, match="the label of source 'scan 1.png' changed"):
        make(datalist, tmp_path / "run", changes={"copies": 1})
    rows = json.loads(datalist.read_text())["training"]
    datalist.write_text(json.dumps({"training": [rows[0], {"image": "scan 1.png", "id": "new"}]}))
    with pytest.raises(RunChangedError, match="source 'scan 1.png' is not in the datalist any more; source 'new' is new in the datalist"):
        make(datalist, tmp_path / "run", changes={"copies": 1})
    assert hashes_of(tmp_path / "run") == before
    make(datalist, tmp_path / "run", changes={"copies": 1}, restart=True)
    after = hashes_of(tmp_path / "run")
    assert len(after) == 6 and {k: v for k, v in after.items() if k.startswith("scan-0")} == {
        k: v for k, v in before.items() if k.startswith("scan-0")
    }


def test_a_foreign_folder_is_refused_and_stays(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 1)
    with pytest.raises(RunChangedError, match="data holds datalist.json and no run; give a new or empty folder"):
        make(datalist, tmp_path / "data", restart=True)
    assert len(list((tmp_path / "data").iterdir())) == 3


def test_a_source_that_vanishes_fails_its_jobs_alone_until_it_is_back(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 2)
    image = tmp_path / "data/scan 1.png"
    content = image.read_bytes()

    def vanish(counts: RunCounts) -> None:
        if counts.ended == 1:
            image.unlink(missing_ok=True)

    counts = make(datalist, tmp_path / "run", progress=vanish)
    assert (counts.accepted, counts.failed) == (2, 2)
    run = read_run(tmp_path / "run")
    assert len(run.failures) == 2 and all("no such file" in each.error and each.traceback for each in run.failures)
    assert make(datalist, tmp_path / "run").failed == 2  # still away: failed again, and the others stay done
    image.write_bytes(content)
    counts = make(datalist, tmp_path / "run")
    assert (counts.done_before, counts.accepted, counts.failed) == (2, 2, 0) and not list((tmp_path / "run/failed").iterdir())
    make(datalist, tmp_path / "other")
    assert hashes_of(tmp_path / "run") == hashes_of(tmp_path / "other")


def test_a_missing_source_of_a_new_run_is_named_before_the_work_begins(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 2)
    (tmp_path / "data/scan 1_label.png").unlink()
    with pytest.raises(DatalistError, match="source 'scan 1.png': label .* does not exist"):
        make(datalist, tmp_path / "run")
    assert not (tmp_path / "run/run.json").exists()


def test_a_key_that_no_transform_writes_is_named_before_the_work_begins(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 1, caption="ultrasound of breast, benign mass")
    with pytest.raises(SpecError, match="prompt_key='text' is written by no earlier transform"):
        make(datalist, tmp_path / "run", changes={"pipeline": [PLACE, {**PAINT, "prompt_key": "text"}]})
    counts = make(datalist, tmp_path / "run", changes={"pipeline": [PLACE, {**PAINT, "prompt_key": "caption"}]})
    assert counts.accepted == 2 and read_run(tmp_path / "run").records[0].prompt == "ultrasound of breast, benign mass"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 1)
    (tmp_path / "run").mkdir()
    with lock_run(tmp_path / "run"), pytest.raises(RunLockedError, match="in use by pid"):
        make(datalist, tmp_path / "run")


def test_part_folders_of_a_killed_run_are_removed_those_of_other_shards_stay(tmp_path: Path) -> None:
    datalist = write_sources(tmp_path / "data", 1)
    jobs = ["scan-0-9390b177-000", "scan-0-9390b177-001"]
    for job in jobs:
        (tmp_path / f"run/results/.{job}.part-00").mkdir(parents=True)
    make(datalist, tmp_path / "run", shard=(0, 2))
    assert sorted(path.name for path in (tmp_path / "run/results").iterdir()) == [f".{jobs[1]}.part-00", jobs[0]]
    make(datalist, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/results").iterdir()) == jobs


def test_a_full_disk_stops_the_run_and_the_next_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datalist = write_sources(tmp_path / "data", 2)
    from monai_diffaug.generate import run_job

    write, calls = run_job.write_label, iter(range(100))

    def full(*arguments: Any) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(run_job, "write_label", full)
    counts = make(datalist, tmp_path / "run", runner=Runner(retries=3))
    assert (counts.accepted, counts.failed, counts.disk_full) == (1, 1, True)
    assert make(datalist, tmp_path / "run").accepted == 3 and not read_run(tmp_path / "run").failures
