"""Threads that are at rest when the program ends: Python kills those that are not, within torch, and the process aborts (signal 6)."""

from __future__ import annotations

import atexit
import weakref
from typing import Protocol

__all__ = ["close_at_exit"]


class Closable(Protocol):
    """Something with a thread."""

    def close(self) -> None:
        """Return when the thread has ended."""
        ...


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_at_exit(owner: Closable) -> None:
    """Close ``owner`` at the end of the program, unless it is gone by then; it is not kept alive."""
    _open.add(owner)


@atexit.register
def _close_all() -> None:
    for owner in list(_open):
        owner.close()
