"""SIGTERM, which SLURM and Docker send before they kill: a command ends as after Ctrl-C, so that no part file stays."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["SIGTERM_EXIT", "sigterm_ends", "without_interruption"]

SIGTERM_EXIT = 128 + signal.SIGTERM  # 143, as a shell reports it


class _State:
    depth = 0  # of blocks that are not interrupted
    is_pending = False


def _end(*_: object) -> None:
    if _State.depth:
        _State.is_pending = True
    else:
        sys.exit(SIGTERM_EXIT)


@contextlib.contextmanager
def sigterm_ends() -> Iterator[None]:
    """Within the block SIGTERM raises SystemExit(143), so that ``finally`` blocks run; the former handler is restored at the end.

    Outside the main thread, where Python allows no handlers, and where another handler is set already, nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def without_interruption() -> Iterator[None]:
    """Delay SIGTERM and Ctrl-C to the end of the block, for steps of a few milliseconds that belong together, such as renames."""
    is_main = threading.current_thread() is threading.main_thread()
    interrupts: list[FrameType | None] = []
    former = signal.signal(signal.SIGINT, lambda _, frame: interrupts.append(frame)) if is_main else None
    _State.depth += is_main
    try:
        yield
    finally:
        _State.depth -= is_main
        if is_main:
            signal.signal(signal.SIGINT, former)
        if is_main and _State.is_pending and not _State.depth:
            _State.is_pending = False
            sys.exit(SIGTERM_EXIT)
        if interrupts:
            raise KeyboardInterrupt
