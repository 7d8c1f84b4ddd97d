"""Stop background threads before interpreter exit; a daemon thread that is killed inside torch aborts the process (SIGABRT)."""

from __future__ import annotations

import atexit
import weakref
from typing import Protocol

__all__ = ["close_at_exit"]


class Closable(Protocol):
    """Owner of a background thread."""

    def close(self) -> None:
        """Stop the thread and wait until it has ended."""
        ...


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_at_exit(owner: Closable) -> None:
    """Call ``owner.close()`` at interpreter exit if the owner still exists then; the reference is weak."""
    _open.add(owner)


@atexit.register
def _close_all() -> None:
    for owner in list(_open):
        owner.close()
