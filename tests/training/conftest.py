"""A datalist of small pictures: a bright disc on dim texture, its label, and one picture of normal tissue."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_diffaug.training import encoded_ring


def write_pictures(folder: Path, count: int = 3, size: int = 72) -> Path:
    rng = np.random.RandomState(0)
    rows = []
    ys, xs = np.indices((size, size))
    for k in range(count):
        centre = rng.randint(24, size - 24, 2)
        disc = np.hypot(ys - centre[0], xs - centre[1]) < 9
        image = np.clip(rng.normal(90, 10, (size, size)) + 110 * disc, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"image{k}.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / f"label{k}.png")
        rows.append({"image": f"image{k}.png", "label": f"label{k}.png"})
    Image.fromarray(np.clip(rng.normal(90, 10, (size, size)), 0, 255).astype(np.uint8)).save(folder / "normal.png")
    rows.append({"image": "normal.png", "finding": "normal tissue"})
    content = {"modality": "ultrasound", "anatomy": "breast", "finding": "benign mass", "training": rows, "validation": rows[:1]}
    file = folder / "datalist.json"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture(autouse=True)
def small_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few crops are encoded before the first step."""
    monkeypatch.setattr(encoded_ring, "FIRST", 4)


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))
