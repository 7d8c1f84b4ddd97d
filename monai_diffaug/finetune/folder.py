"""Put a freshly written model into its folder part by part, so that no half-written file is ever found there."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["replace_parts"]


def replace_parts(written: Path, folder: Path) -> None:
    """Move everything in ``written`` into ``folder``, in place of what has the same name, and remove ``written``."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(written.iterdir()):
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    written.rmdir()
