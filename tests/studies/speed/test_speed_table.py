"""The tables of the figures of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monai_diffaug.studies.speed.speed_table import MARKERS, insert_tables, render, render_readme

ROOT = Path(__file__).resolve().parents[3]

EDIT = {
    "model": "embedded",
    "empty_fraction": 0.0,
    "size_px": 64,
    "slices": 8,
    "repainted": 8,
    "steps": 12,
    "dtype": "float32",
    "passed": True,
    "seconds": {"ours": [1.0, 0.9, 1.1]},
    "faster_than": {"a": [3.0, 2.9, 3.1], "b": [2.5, 2.4, 2.6], "c": [1.1, 1.0, 1.2]},
    "over_bare": [1.02, 1.01, 1.03],
    "peak_mb": {"ours": 25.0, "a": 3.0, "b": 3.0, "c": 26.0},
}
FIGURES: dict[str, Any] = {
    "device": "cpu",
    "machine": {"processor": "a processor", "gpu": "none", "torch": "2", "diffusers": "0.3"},
    "amount": {"rounds": 7},
    "scheduler_step": {"microseconds": {"ours": [36.0, 35, 37], "diffusers": [240.0, 230, 250]}, "faster": [6.7, 6.6, 6.8]},
    "inpainting": {
        "edits": [EDIT, {**EDIT, "size_px": 128, "passed": False}],
        "roi": [{"model": "embedded", "size_px": 256, "roi_px": 128, "slices": 2, "faster": [3.6, 3.5, 3.7]}],
    },
    "profile": {
        "peak_gflop_per_second": {"float32": 127.0},
        "unet": [
            {
                "model": "embedded",
                "size_px": 64,
                "rows": 32,
                "dtype": "float32",
                "gflop": 16.2,
                "gflop_per_second": 101.0,
                "share_of_peak": 0.795,
            }
        ],
        "edits": [{"model": "embedded", "size_px": 64, "shares": {"convolutions": 0.5, "other": 0.5}}],
    },
    "medsam": {
        "masks": [
            {
                "model": "ViT-B",
                "input_px": 1024,
                "slices": 2,
                "dtype": "float32",
                "passed": True,
                "seconds": {"ours": [8.0, 7, 9]},
                "faster_than": {"script": [5.5, 5.4, 5.6]},
                "over_bare": [1.04, 1, 1.1],
                "peak_mb": {"ours": 90.0, "script": 2000.0},
            }
        ]
    },
    "training_step": [
        {"repeats": 10, "seconds_per_step": {"with": [0.3, 0.2, 0.4], "without": [0.2, 0.2, 0.2]}, "overhead": [0.5, 0.4, 0.6]}
    ],
    "scaling": [
        {
            "of": "slices of a volume",
            "counts": [8, 16, 24],
            "slope_ms": 89.6,
            "slope_over_bare": 1.02,
            "intercept_ms": [12.3, -3.0, 30.0],
            "package_ms": 3.1,
            "r_squared": 0.9995,
        }
    ],
    "quality": [
        {
            "lever": "UniPC, 8 steps",
            "images": 16,
            "seconds": 0.5,
            "similarity": 0.912,
            "accepted": 0.25,
            "dice": 0.61,
            "faster_than_default": 1.5,
        },
        {
            "lever": "untrained",
            "images": 16,
            "seconds": 0.5,
            "similarity": None,
            "accepted": None,
            "dice": None,
            "faster_than_default": 0.9,
        },
    ],
}


def test_every_figure_is_in_its_row() -> None:
    text = render_readme(FIGURES)
    assert "| embedded | 64 px | 8 of 8 | 12 | float32 | 3.00x [2.90, 3.10] | 2.50x [2.40, 2.60] (goal 2.8x) | 1.10x [1.00, 1.20] |" in text
    assert "| ViT-B | 1024 px | float32 | 4000 | 5.50x [5.40, 5.60] | 1.040 | ours 90 / script 2000 |" in text
    assert "| embedded | 256 px | 128 px | 3.60x [3.50, 3.70] |" in text
    assert "| 10 | 200 | 300 | 50% |" in text
    assert "| slices of a volume | 8 to 24 | 89.6 | 1.020 | 12 [-3, 30] | 3.1 | 0.9995 |" in text
    assert "| embedded | 64 px | 32 | float32 | 16 | 101 | 80% |" in text and "float32 127 GFLOP/s" in text
    assert "| embedded | 64 px | 50% | 50% |" in text
    assert "| untrained | 500 | 0.90x | not measurable |  |  |" in text
    assert "| UniPC, 8 steps | 500 | 1.50x | 0.912 | 25% | 0.61 |" in text


def test_a_row_whose_results_differ_has_no_speed() -> None:
    row = next(line for line in render_readme(FIGURES).splitlines() if "128 px | 8 of 8" in line)
    assert "not timed" in row and "x [" not in row


def test_the_text_depends_on_the_file_only() -> None:
    assert render_readme(json.loads(json.dumps(FIGURES))) == render_readme(FIGURES)
    assert "36 us" in render(FIGURES)


def test_subjects_that_were_not_measured_have_no_table() -> None:
    text = render_readme({key: FIGURES[key] for key in ("device", "machine", "amount", "scaling")})
    assert "slices of a volume" in text and "MedSAM" not in text and "Training step" not in text


def test_the_tables_replace_the_text_between_the_markers() -> None:
    text = f"before\n<!-- {MARKERS}:start -->\nold\n<!-- {MARKERS}:end -->\nafter\n"
    once = insert_tables(text, FIGURES)
    assert once.startswith("before\n") and once.endswith("\nafter\n") and "old" not in once and render_readme(FIGURES) in once
    assert insert_tables(once, FIGURES) == once
    with pytest.raises(ValueError, match="no place for the tables"):
        insert_tables("no markers", FIGURES)


def test_the_pages_show_the_figures_of_the_last_run() -> None:
    figures = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    pages = [page for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")) if f"{MARKERS}:start" in page.read_text()]
    assert pages
    for page in pages:
        assert insert_tables(page.read_text(), figures) == page.read_text(), page
