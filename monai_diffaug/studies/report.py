"""What the studies' commands have in common: their options, and figures as one JSON file, whole or not at all."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["study_parser", "write_json"]


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every study that repaints: --model, --steps, --guidance-scale, --seed and --out."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="tiny", help="a source of DiffusionLocalInpaint's model=")
    parser.add_argument("--steps", type=int, default=12, help="of the sampler")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser


def write_json(figures: Any, file: Path | None) -> None:
    """Write ``figures`` to ``file`` (folders are made); nothing when it is None."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    part.replace(file)
