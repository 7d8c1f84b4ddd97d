"""Where variants are kept: memory or a folder, bounded, and whole after a crash in the middle of a write."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["FolderStore", "MemoryStore", "VariantKey", "VariantStore"]

logger = logging.getLogger(__name__)

ABANDONED_S = 3600.0  # a part file of this age belongs to a process that died while it wrote
PART = ".part"
USES = ".uses"


class VariantKey(NamedTuple):
    """One variant: the sample (a hash of content, settings and seed), its place in the bank, and how often that was refreshed."""

    sample: str
    slot: int
    generation: int


class VariantStore(Protocol):
    """Where variants are kept. Every method may be called from any thread."""

    def get(self, key: VariantKey) -> dict[Hashable, Any] | None: ...
    def put(self, key: VariantKey, values: dict[Hashable, Any]) -> None: ...
    def discard(self, key: VariantKey) -> None: ...
    def used(self, key: VariantKey) -> int: ...
    def known(self, sample: str) -> list[VariantKey]: ...


class MemoryStore:
    """Variants in memory; beyond ``limit`` the one not used for longest goes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: OrderedDict[VariantKey, dict[Hashable, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: VariantKey) -> dict[Hashable, Any] | None:
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key]

    def put(self, key: VariantKey, values: dict[Hashable, Any]) -> None:
        with self._lock:
            self._held[key] = values
            while len(self._held) > self.limit:
                self._held.popitem(last=False)

    def discard(self, key: VariantKey) -> None:
        with self._lock:
            self._held.pop(key, None)

    def used(self, key: VariantKey) -> int:
        """0: nobody else uses what is in this memory."""
        return 0

    def known(self, sample: str) -> list[VariantKey]:
        with self._lock:
            return [key for key in self._held if key.sample == sample]


class FolderStore:
    """Variants as files ``SAMPLE/SLOT-GENERATION.pt``, which the next run finds again; beyond ``limit`` the oldest used goes.

    A file is written under another name and renamed when it is complete, so a crash leaves whole variants and at most a part file,
    which is not read and is removed an hour later. A file that cannot be read counts as missing. Several processes may share a folder.

    Raises:
        OSError: the folder, or in ``put`` a file in it, cannot be written.
        TypeError: in ``put``, a value that could not be read back.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob(f"*/*{PART}"):
            _remove_if_older(part, ABANDONED_S)

    def get(self, key: VariantKey) -> dict[Hashable, Any] | None:
        file = self._file(key)
        try:
            values: dict[Hashable, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch.load raises whatever a damaged archive makes its parts raise
            logger.warning("%s cannot be read (%s) and is made again", file, error)
            file.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # another process removed it, or the folder is on a read-only disk
            os.utime(file)
        return values

    def put(self, key: VariantKey, values: dict[Hashable, Any]) -> None:
        for name, value in values.items():
            _require_readable(value, repr(name))
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{uuid.uuid4().hex}{PART}")
        try:
            try:
                torch.save(values, part)
            except RuntimeError as error:  # what torch raises when the disk is full
                raise OSError(f"{file} cannot be written, is the disk full? ({str(error).splitlines()[0]})") from error
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        with self._lock:
            self._bound()

    def discard(self, key: VariantKey) -> None:
        _remove(self._file(key))

    def used(self, key: VariantKey) -> int:
        """Note a use, a byte in a file beside the variant; uses so far by all processes, 0 where nothing can be written."""
        with suppress(OSError), self._file(key).with_suffix(USES).open("ab") as file:
            file.write(b".")
            return file.tell()
        return 0

    def known(self, sample: str) -> list[VariantKey]:
        numbers = (file.stem.split("-") for file in sorted((self.folder / sample).glob("*-*.pt")))
        return [VariantKey(sample, int(slot), int(generation)) for slot, generation in numbers]

    def _file(self, key: VariantKey) -> Path:
        return self.folder / key.sample / f"{key.slot}-{key.generation}.pt"

    def _bound(self) -> None:
        files = list(self.folder.glob("*/*.pt"))
        if len(files) > self.limit:
            for file in sorted(files, key=_last_use)[: len(files) - self.limit]:
                _remove(file)


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.with_suffix(USES).unlink(missing_ok=True)


def _require_readable(value: Any, place: str) -> None:
    """Raise TypeError for what is written but never read again, as reading runs no code: such a variant would be made anew at each draw."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            _require_readable(each, f"{place}[{name!r}]")
    elif isinstance(value, (list, tuple)):
        for i, each in enumerate(value):
            _require_readable(each, f"{place}[{i}]")
    elif value is not None and not isinstance(value, (Tensor, str, bytes, bool, int, float, complex)):
        raise TypeError(
            f"{place} is a {type(value).__name__}, which a folder of variants does not hold; let the transform make a text, a number or a "
            "tensor of it, or keep the variants in memory (folder=None)"
        )


def _last_use(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0


def _remove_if_older(file: Path, seconds: float) -> None:
    if time.time() - _last_use(file) > seconds:
        file.unlink(missing_ok=True)
