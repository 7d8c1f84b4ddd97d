"""The libraries' progress bars off within a block: a library loads and writes in silence, the command line shows its own progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_progress_bars"]


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Within the block transformers and diffusers load and write their shards in silence."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
