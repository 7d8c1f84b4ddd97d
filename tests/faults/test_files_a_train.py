"""Faults of letter A, training: folders and files of the user that a run replaced or deleted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.commands.cli import main
from monai_diffaug.files.whole_file import locked_folder

SMALL = ["--batch-size", "1", "--pictures", "0", "-q", "--modality", "mri", "--anatomy", "brain", "--finding", "glioma"]


@pytest.fixture
def arguments(tmp_path: Path, random_inpainter: str) -> list[str]:
    """A ``train inpaint`` command without its place."""
    rng = np.random.RandomState(0)
    Image.fromarray(rng.randint(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / "image.png")
    label = np.zeros((40, 40), np.uint8)
    label[10:30, 10:30] = 1
    Image.fromarray(label).save(tmp_path / "label.png")
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "image.png", "label": "label.png"}]}))
    return ["train", "inpaint", "--data", str(tmp_path / "list.json"), "--model", random_inpainter, *SMALL]


@pytest.mark.parametrize("place", ["vae", "unet/weights", "model.safetensors", "notes.txt"])
def test_a_folder_with_foreign_files_is_refused_and_stays_as_it_is(tmp_path, arguments, capsys, place) -> None:
    out = tmp_path / "out"
    (out / place).parent.mkdir(parents=True)
    (out / place).write_text("precious")
    assert main([*arguments, "--steps", "1", "--out", str(out)]) == 2
    assert "and no earlier run" in capsys.readouterr().err
    assert [path.name for path in out.rglob("*") if path.is_file()] == [Path(place).name] and (out / place).read_text() == "precious"


def test_a_foreign_file_in_the_place_of_a_part_stays_and_the_run_can_end_after_it_moved(tmp_path, arguments, capsys) -> None:
    out = tmp_path / "out"
    (out / "training").mkdir(parents=True)
    (out / "training/settings.json").write_text(json.dumps({"recipe": "inpaint"}))  # a run that wrote no model yet
    (out / "vae").write_text("precious")
    assert main([*arguments, "--steps", "1", "--out", str(out)]) == 2
    assert "vae is not from this run and is not replaced; move it away" in capsys.readouterr().err
    assert (out / "vae").read_text() == "precious" and not (out / "unet").exists()
    (out / "vae").rename(tmp_path / "vae")
    assert main([*arguments, "--steps", "1", "--out", str(out)]) == 0
    assert (out / "vae").is_dir() and main([*arguments, "--steps", "2", "--out", str(out)]) == 0
    assert main([*arguments, "--steps", "1", "--restart", "--out", str(out)]) == 0


@pytest.mark.slow
def test_a_second_run_in_one_folder_is_refused_while_the_first_one_runs(tmp_path, arguments, capsys) -> None:
    out = tmp_path / "out"
    holder = "import sys, time\nfrom pathlib import Path\nfrom monai_diffaug.files.whole_file import locked_folder\n"
    holder += "with locked_folder(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", holder, str(out)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        assert main([*arguments, "--steps", "1", "--out", str(out)]) == 2
        other.kill()
    assert "another run writes to --out" in capsys.readouterr().err and list(out.iterdir()) == []
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with locked_folder(out, wait=False) as free:
            if free:
                return
    raise AssertionError("the lock did not end with its process")
