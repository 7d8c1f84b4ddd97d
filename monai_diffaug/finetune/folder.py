"""Put a freshly written model into its folder part by part, so that no half-written file is ever found there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replace_parts", "without_progress_bars"]


def replace_parts(written: Path, folder: Path) -> None:
    """Move everything in ``written`` into ``folder``, in place of what has the same name, and remove ``written``."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(written.iterdir()):
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    written.rmdir()


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Within the block transformers and diffusers write their shards in silence."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
