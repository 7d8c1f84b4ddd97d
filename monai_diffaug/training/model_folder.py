"""Move a freshly written model into its folder part by part, so that no half-written file is ever there."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["replace_parts"]


def replace_parts(written: Path, folder: Path) -> None:
    """Move everything in ``written`` into ``folder``, replacing files and folders of the same name, and remove ``written``."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(written.iterdir()):
        target = folder / part.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif part.is_dir():
            target.unlink(missing_ok=True)  # a folder cannot replace a file or a link
        part.replace(target)
    written.rmdir()
