"""How the studies write their figures: one JSON file, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["write_json"]


def write_json(figures: Any, file: Path | None) -> None:
    """Write ``figures`` to ``file`` (folders are made); nothing when it is None."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    part.replace(file)
