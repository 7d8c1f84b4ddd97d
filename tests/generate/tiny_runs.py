"""Small sources and a cheap spec for the tests of bulk generation."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from monai_diffaug.generate.run_folder import read_run

PLACE = {"_target_": "monai_diffaug.PlaceMaskd", "keys": "image", "label_key": "label"}
TEXT = {"_target_": "monai_diffaug.TextPromptd", "keys": "prompt", "modality": "ultrasound", "anatomy": "breast"}
PAINT = {"_target_": "monai_diffaug.DiffusionLocalInpaintd", "keys": "image", "label_key": "label", "num_inference_steps": 1}
PIPELINE = [PLACE, {**TEXT, "finding": ["benign mass", "malignant mass"]}, {**PAINT, "guidance_scale": 1}]
SPEC: dict[str, Any] = {"seed": 5, "copies": 2, "pipeline": PIPELINE}


def write_sources(folder: Path, count: int = 3, side: int = 64, **words: Any) -> Path:
    """PNG pictures with labels; returns the datalist."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        Image.fromarray(np.random.RandomState(i).randint(40, 200, (side, side), dtype=np.uint8)).save(folder / f"scan {i}.png")
        label = np.zeros((side, side), np.uint8)
        label[2:8, 2:8] = 2
        Image.fromarray(label).save(folder / f"scan {i}_label.png")
        rows.append({"image": f"scan {i}.png", "label": f"scan {i}_label.png", "group": f"p{i}", "fold": i % 2, **words})
    return write_datalist(folder / "datalist.json", rows)


def write_volume(folder: Path) -> Path:
    """One volume with scaled int16 voxels and no label; returns the datalist."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = np.random.RandomState(0).normal(100, 10, (40, 48, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([0.5, 0.5, 3.0, 1.0])), folder / "ct.nii")
    return write_datalist(folder / "datalist.json", [{"image": "ct.nii"}])


def write_datalist(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"training": rows}))
    return path


def write_spec(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**SPEC, **changes}))
    return path


def hashes_of(folder: Path) -> dict[str, str]:
    """Hash of each image, label and mask of a run, read from the files; they must be those of the records."""
    hashes = {}
    run = read_run(folder)
    for record in run.records:
        for role, name in record.files.items():
            content = run.file(record, role).read_bytes()
            hashes[f"{record.job}/{name}"] = hashlib.sha256(content).hexdigest()
            assert hashes[f"{record.job}/{name}"] == record.sha256[role]
    return hashes


def start(*arguments: object, module: Path | None = None) -> subprocess.Popen[str]:
    """Start the command as another process; ``module`` is a folder to import from."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(module or "")}
    command = [sys.executable, "-m", "monai_diffaug", "generate", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 240) -> Any:
    """The first true value of a condition; the process must run until then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")
