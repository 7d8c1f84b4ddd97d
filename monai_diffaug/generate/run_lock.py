"""The lock of a run folder: one run at a time, or several shards that hold one part each; a refused run learns the owner's host and pid."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["RunLockedError", "lock_run"]

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"


class RunLockedError(RuntimeError):
    """Another process writes to the run folder."""


@contextmanager
def lock_run(folder: Path, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold a run folder during the block. The lock ends with the process, however it ends.

    A whole run excludes all others. Shards exclude whole runs and their own number, not each other. File systems and platforms without
    locks: a warning, and no lock.

    Args:
        folder: of the run.
        shard: (index, count), or None for a whole run.

    Raises:
        RunLockedError: another process holds the folder or the shard; the message has its host and pid.
        OSError: the folder cannot be written.
    """
    with ExitStack() as stack:
        if shard is None:
            stack.enter_context(_locked(folder / LOCK_FILE, shared=False))
        else:
            stack.enter_context(_locked(folder / LOCK_FILE, shared=True))
            stack.enter_context(_locked(folder / f"{LOCK_FILE}.{shard[0]}-of-{shard[1]}", shared=False))
        yield


@contextmanager
def _locked(path: Path, *, shared: bool) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        logger.warning("%s: this platform has no file locks; start one run per folder", path.parent)
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLockedError(f"{path.parent} is in use by {_owner(path)}; wait for its end, or give another --out") from error
        except OSError as error:  # network file systems without locks
            logger.warning("%s cannot be locked (%s); start one run per folder", path.parent, error.strerror)
        if not shared:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        yield
        if not shared:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _owner(path: Path) -> str:
    """Host and pid of the processes that hold the lock: of a whole run, or of shards."""
    owners = []
    for file in (path, *sorted(path.parent.glob(f"{LOCK_FILE}.*"))):
        try:
            owner = json.loads(file.read_text())
            if _is_held(file):  # a killed process leaves its name behind, but not its lock
                owners.append(f"pid {owner['pid']} on {owner['host']}")
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ", ".join(dict.fromkeys(owners)) or "another process"


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock for itself alone."""
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
