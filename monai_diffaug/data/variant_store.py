"""Storage of variants in memory or in a folder, with a limit; a crash during a write leaves no incomplete variant."""

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

ABANDONED_S = 3600.0  # a part file of this age was left by a process that died during the write
PART = ".part"
USES = ".uses"


class VariantKey(NamedTuple):
    """Identity of a variant.

    Attributes:
        sample: hash of content, settings and seed.
        slot: number of the variant within its sample.
        generation: number of times the slot was refreshed.
    """

    sample: str
    slot: int
    generation: int


class VariantStore(Protocol):
    """Storage of variants. All methods may be called from any thread."""

    def get(self, key: VariantKey) -> dict[Hashable, Any] | None: ...
    def put(self, key: VariantKey, values: dict[Hashable, Any]) -> None: ...
    def discard(self, key: VariantKey) -> None: ...
    def used(self, key: VariantKey) -> int: ...
    def known(self, sample: str) -> list[VariantKey]: ...


class MemoryStore:
    """Variants in memory; beyond ``limit`` the least recently used one is removed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._variants: OrderedDict[VariantKey, dict[Hashable, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: VariantKey) -> dict[Hashable, Any] | None:
        with self._lock:
            if key not in self._variants:
                return None
            self._variants.move_to_end(key)
            return self._variants[key]

    def put(self, key: VariantKey, values: dict[Hashable, Any]) -> None:
        with self._lock:
            self._variants[key] = values
            while len(self._variants) > self.limit:
                self._variants.popitem(last=False)

    def discard(self, key: VariantKey) -> None:
        with self._lock:
            self._variants.pop(key, None)

    def used(self, key: VariantKey) -> int:
        """0, because no other process uses this memory."""
        return 0

    def known(self, sample: str) -> list[VariantKey]:
        with self._lock:
            return [key for key in self._variants if key.sample == sample]


class FolderStore:
    """Variants as files ``SAMPLE/SLOT-GENERATION.pt``, which later runs reuse; beyond ``limit`` the least recently used is removed.

    A file is written under another name and renamed when it is complete. So a crash leaves at most a part file, which is not read and
    is removed after an hour. A file that cannot be read counts as missing. Several processes may share a folder.

    Raises:
        OSError: the folder, or in ``put`` a file in it, cannot be written.
        TypeError: in ``put``, a value of a type that ``get`` could not read.
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
        except Exception as error:  # damaged archives make torch.load raise errors of many types
            logger.warning("%s cannot be read (%s) and is made again", file, error)
            file.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # another process removed the file, or the disk is read-only
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
            except RuntimeError as error:  # torch's error for a full disk
                raise OSError(f"{file} cannot be written, is the disk full? ({str(error).splitlines()[0]})") from error
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        with self._lock:
            self._apply_limit()

    def discard(self, key: VariantKey) -> None:
        _remove(self._file(key))

    def used(self, key: VariantKey) -> int:
        """Count a use as one byte in a file next to the variant; uses of all processes so far, 0 if the file cannot be written."""
        with suppress(OSError), self._file(key).with_suffix(USES).open("ab") as file:
            file.write(b".")
            return file.tell()
        return 0

    def known(self, sample: str) -> list[VariantKey]:
        numbers = (file.stem.split("-") for file in sorted((self.folder / sample).glob("*-*.pt")))
        return [VariantKey(sample, int(slot), int(generation)) for slot, generation in numbers]

    def _file(self, key: VariantKey) -> Path:
        return self.folder / key.sample / f"{key.slot}-{key.generation}.pt"

    def _apply_limit(self) -> None:
        files = list(self.folder.glob("*/*.pt"))
        if len(files) > self.limit:
            for file in sorted(files, key=_last_use)[: len(files) - self.limit]:
                _remove(file)


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.with_suffix(USES).unlink(missing_ok=True)


def _require_readable(value: Any, place: str) -> None:
    """Raise TypeError for types that ``torch.load(weights_only=True)`` refuses: such a variant would be made again at each draw."""
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
    except FileNotFoundError:  # another process removed the file
        return 0.0


def _remove_if_older(file: Path, seconds: float) -> None:
    if time.time() - _last_use(file) > seconds:
        file.unlink(missing_ok=True)
