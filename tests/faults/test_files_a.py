"""Faults of letter A: files of the user that a command replaced or mixed, although it ended with exit code 0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_diffaug.commands.cli import main
from monai_diffaug.files.whole_file import content_hash

QUICK = ["--num-inference-steps", "1", "--guidance-scale", "1", "--prompt", "MRI of brain, glioma", "-q"]


def write_scan(folder: Path, seed: int) -> Path:
    """A small volume and its mask."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = np.random.RandomState(seed).normal(100, 10, (32, 32, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "scan.nii.gz")
    mask = np.zeros(volume.shape, np.uint8)
    mask[8:20, 8:20, 1] = 1
    nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / "mask.nii.gz")
    return folder / "scan.nii.gz"


def command(scan: Path, out: Path, model: str, *options: str) -> list[str]:
    return ["augment", str(scan), "--mask", str(scan.parent / "mask.nii.gz"), "--out", str(out), "--model", model, *QUICK, *options]


@pytest.mark.slow
def test_two_commands_with_one_place_leave_files_of_one_command(tmp_path, random_inpainter) -> None:
    scan, out = write_scan(tmp_path / "in", 0), tmp_path / "out"
    running = [
        subprocess.Popen([sys.executable, "-m", "monai_diffaug", *command(scan, out, random_inpainter, "--seed", seed)]) for seed in "12"
    ]
    assert [process.wait() for process in running] == [0, 0]
    record = json.loads((out / "scan_diffaug.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == sorted([*record["files"], "scan_diffaug.json"])
    assert all(content_hash(out / name) == digest for name, digest in record["sha256"].items())
    assert np.isfinite(nib.load(out / "scan_diffaug.nii.gz").get_fdata()).all()
    # the seed in the record is that of the image
    assert main(command(scan, tmp_path / "again", random_inpainter, "--seed", str(record["seed"]))) == 0
    again, first = (nib.load(folder / "scan_diffaug.nii.gz").get_fdata() for folder in (tmp_path / "again", out))
    assert np.abs(again - first).max() < 0.01 * first.std()  # the last bits depend on the number of threads; another seed is far off


def test_an_original_that_is_a_link_to_its_own_result_is_kept(tmp_path, random_inpainter, capsys) -> None:
    scan, out = write_scan(tmp_path / "in", 0), tmp_path / "out"
    out.mkdir()
    original = out / "scan_diffaug.nii.gz"
    scan.rename(original)
    scan.symlink_to(original)
    before = original.read_bytes()
    for extra in ((), ("--overwrite",)):
        assert main(command(scan, out, random_inpainter, *extra)) == 2
        assert "would be written over" in capsys.readouterr().err
    assert original.read_bytes() == before and [path.name for path in out.iterdir()] == ["scan_diffaug.nii.gz"]


def test_the_result_of_another_patient_with_the_same_file_name_is_kept(tmp_path, random_inpainter, capsys, monkeypatch) -> None:
    for patient, seed in (("p1", 1), ("p2", 2)):
        write_scan(tmp_path / patient, seed)
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path / "p1")
    assert main(command(Path("scan.nii.gz"), out, random_inpainter)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.chdir(tmp_path / "p2")  # the record holds a relative path, which names this patient's image now
    assert main(command(Path("scan.nii.gz"), out, random_inpainter)) == 2
    assert "is of another image" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.chdir(tmp_path / "p1")
    assert main(command(Path("scan.nii.gz"), out, random_inpainter)) == 0
    monkeypatch.chdir(tmp_path / "p2")
    assert main(command(Path("scan.nii.gz"), out, random_inpainter, "--overwrite")) == 0
    assert json.loads((out / "scan_diffaug.json").read_text())["input"]["image_sha256"] == content_hash(tmp_path / "p2/scan.nii.gz")


def test_an_interrupted_command_leaves_the_whole_earlier_result(tmp_path, random_inpainter, monkeypatch) -> None:
    scan, out = write_scan(tmp_path / "in", 0), tmp_path / "out"
    assert main(command(scan, out, random_inpainter)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_diffaug.commands.edit_file.content_hash", interrupted)
    assert main(command(scan, out, random_inpainter, "--seed", "5")) == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("moment", ["part file", "between the renames"])
def test_sigterm_leaves_no_part_file_and_image_and_record_belong_together(tmp_path, random_inpainter, monkeypatch, moment) -> None:
    scan, out = write_scan(tmp_path / "in", 0), tmp_path / "out"
    assert main(command(scan, out, random_inpainter)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    sent = []

    def send(usual):
        def act(*arguments, **options):
            result = usual(*arguments, **options)
            is_inner = len(arguments) == 2 and arguments[1].name.startswith(".")  # the writer of one file renames too
            if not sent and not is_inner and any(path.name.startswith(".") for path in out.iterdir()):
                sent.append(True)
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        return act

    if moment == "part file":
        monkeypatch.setattr("monai_diffaug.commands.edit_file.content_hash", send(content_hash))
    else:
        monkeypatch.setattr(Path, "replace", send(Path.replace))
    with pytest.raises(SystemExit) as raised:
        main(command(scan, out, random_inpainter, "--seed", "5"))
    assert raised.value.code == 143 and sent
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys() and (after == before) == (moment == "part file")
    record = json.loads(after["scan_diffaug.json"])
    assert all(content_hash(out / name) == digest for name, digest in record["sha256"].items())


@pytest.mark.parametrize("flag", [(), ("--overwrite",)])
def test_a_read_only_result_is_kept(tmp_path, random_inpainter, capsys, flag) -> None:
    scan, out = write_scan(tmp_path / "in", 0), tmp_path / "out"
    assert main(command(scan, out, random_inpainter)) == 0
    (out / "scan_diffaug.nii.gz").chmod(0o444)
    before = (out / "scan_diffaug.nii.gz").read_bytes()
    assert main(command(scan, out, random_inpainter, "--seed", "5", *flag)) == 2
    assert "read-only" in capsys.readouterr().err and (out / "scan_diffaug.nii.gz").read_bytes() == before
