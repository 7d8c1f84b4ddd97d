"""Files that appear whole or not at all, also if several processes write to one place at once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["content_hash", "locked_folder", "part_of", "same_place", "whole_file"]

logger = logging.getLogger(__name__)

COMPRESSED = (".nii.gz",)  # the writers choose the format by the last two suffixes


def part_of(path: Path) -> Path:
    """A new empty file in the folder of ``path``, with its suffix and a name that no other writer has.

    Raises:
        OSError: the folder cannot be written.
    """
    suffix = next((s for s in COMPRESSED if path.name.lower().endswith(s)), path.suffix)
    while True:
        part = path.with_name(f".{secrets.token_hex(8)}.part{suffix}")
        try:
            # O_EXCL: a file or link that is there already is never opened
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return part


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A part file next to ``path``; it is renamed to ``path`` at the end of the block, and removed if the block fails.

    Each writer has a part file of another name, so that the last one of several writers wins with a whole file. A link at ``path``
    is replaced, its target is not changed.

    Raises:
        PermissionError: ``path`` is a file without write permission.
        OSError: the folder cannot be written.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with whole_file(target) as part:
    ...     _ = part.write_text("whole")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    _require_writable(path)
    part = part_of(path)
    try:
        yield part
        _require_writable(path)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _require_writable(path: Path) -> None:
    """A rename would replace a read-only file: only the folder's permission counts for it."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode) and not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} is read-only and is not replaced; remove it, or choose another place")


def same_place(one: Path, other: Path) -> bool:
    """True if both paths lead to one existing file (by device and inode, through links), or are one path.

    >>> same_place(Path("a/../b"), Path("b"))
    True
    """
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return one.resolve() == other.resolve()


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a folder (64 hexadecimal digits).

    Raises:
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{file_path.relative_to(path).as_posix()}\0{content_hash(file_path)}\n".encode())
    return total.hexdigest()


@contextlib.contextmanager
def locked_folder(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder during the block; yields False if ``wait`` is False and another process holds it.

    The lock ends with the process. It leaves no file. File systems and platforms without locks: a warning, and no lock.

    Raises:
        OSError: the folder cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        logger.warning("%s: this platform has no folder locks; start one run per folder", folder)
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        acquired = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            acquired = False
        except OSError as error:  # network file systems without locks
            logger.warning("%s cannot be locked (%s); start one run per folder", folder, error.strerror)
        yield acquired
    finally:
        os.close(descriptor)
