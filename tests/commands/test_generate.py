"""``monai-diffaug generate``: exit codes, what is printed, and errors in one line."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.commands.cli import main
from monai_diffaug.commands.generate import shard
from tests.generate.tiny_runs import hashes_of, write_sources, write_spec


def arguments(folder: Path, *more: str, **changes: object) -> list[str]:
    if not (folder / "data").exists():
        write_sources(folder / "data", 2)
    spec = write_spec(folder / "spec.json", **{"copies": 1, **changes})
    return ["generate", str(spec), "--data", str(folder / "data/datalist.json"), "--out", str(folder / "run"), *more]


def test_a_run_prints_its_counts_and_a_second_one_that_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 0
    assert capsys.readouterr().out == f"2 accepted, 0 filtered, 0 failed of 2 jobs: {tmp_path}/run\n"
    assert (tmp_path / "run/report.html").is_file() and len(hashes_of(tmp_path / "run")) == 6
    assert main(arguments(tmp_path, "--continue")) == 0
    assert "0 accepted, 0 filtered, 0 failed of 2 jobs, 2 were done before" in capsys.readouterr().out


def test_a_failed_job_gives_exit_code_1_and_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = arguments(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "data/scan 1_label.png")
    assert main(command) == 1
    assert "1 accepted, 0 filtered, 1 failed of 2 jobs" in capsys.readouterr().out
    assert "GridMismatchError: label scan 1_label.png (8, 8) is not on the grid" in caplog.text
    (failure,) = (tmp_path / "run/failed").iterdir()
    assert json.loads(failure.read_text())["attempts"] == 1
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "data/scan 1_label.png")
    assert main(command) == 2  # the source is another one now
    assert "the label of source 'scan 1.png' changed" in capsys.readouterr().err
    assert main([*command, "--restart"]) == 0


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, "--dry-run", "--workers", "4", copies=3)) == 0
    jobs, names, time, disk = capsys.readouterr().out.splitlines()
    assert jobs == "jobs: 6 (6 lesions, 0 controls), 0 done" and names.startswith("names: scan-0-9390b177-000, scan-0-9390b177-001, ")
    assert names.endswith("..., scan-1-3c3ee9e6-002") or ", ..., scan-1-" in names
    assert time.startswith("time: ") and "with 4 worker(s)" in time and disk.startswith("disk: 0.0 MB of ")
    assert not (tmp_path / "run").exists()


def test_the_last_shard_writes_the_export_that_the_spec_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, words in ((0, ""), (1, "monai: 2 real and 2 synthetic cases: ")):
        assert main(arguments(tmp_path, "--shard", f"{index}/2", format="monai")) == 0
        out = capsys.readouterr().out
        assert "1 accepted, 0 filtered, 0 failed of 1 jobs" in out and (words in out if words else "monai" not in out)
    assert (tmp_path / "run/exports/monai").is_dir()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shard", "2/2"], "I/N needs 0 <= I < N, got 2/2; the first shard is 0/2"),
        (["--shard", "0/2", "--restart"], "--restart would remove the results of the other shards"),
        (["--gpus-per-actor", "0.5"], "--gpus-per-actor is for --ray"),
        (["--section", "test"], 'has no list "test"'),
        (["--restart", "--continue"], "not allowed with argument"),
        (["--retries", "-1"], "must be in 0 to 100"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert main(arguments(tmp_path, *more)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_wrong_spec_and_a_wrong_datalist_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, copys=2)) == 2
    assert "spec.json: unknown key 'copys'; did you mean copies?" in capsys.readouterr().err
    command = arguments(tmp_path)
    (tmp_path / "data/datalist.json").write_text("{")
    assert main(command) == 2 and "is no JSON" in capsys.readouterr().err


def test_a_shard_is_two_numbers() -> None:
    assert shard("0/1") == (0, 1) and shard("7/8") == (7, 8)
    for text in ("3", "a/b", "-1/2", "1/0", "2/1"):
        with pytest.raises(argparse.ArgumentTypeError):
            shard(text)
