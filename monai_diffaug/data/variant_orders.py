"""Queue of variants to make, worked off by a background thread that ends when the queue is empty."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai_diffaug.data.background_threads import close_at_exit
from monai_diffaug.data.variant_store import VariantKey

__all__ = ["PENDING", "VariantOrders"]

PENDING = 64  # maximum length of the queue; an order keeps its sample in memory


class VariantOrders:
    """Orders of variants and the one thread that makes them, one after the other.

    At interpreter exit the current variant is finished, and the remaining orders are dropped.

    Args:
        make: makes a variant of a sample; it must not raise.
    """

    def __init__(self, make: Callable[[Mapping[Hashable, Any], VariantKey], None]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Mapping[Hashable, Any], VariantKey]] = deque()
        self._pending: set[VariantKey] = set()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        close_at_exit(self)

    def place(self, data: Mapping[Hashable, Any], key: VariantKey) -> None:
        """Order a variant, unless one of the same sample is pending or the queue is full; a later draw will order it again."""
        with self._lock:
            if len(self._pending) >= PENDING or any(other.sample == key.sample for other in self._pending):
                return
            self._pending.add(key)
            self._waiting.append((dict(data), key))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="variants", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Drop the waiting orders and wait until the current variant is finished."""
        if self._pid != os.getpid():
            return  # a forked child does not have the thread, and the lock may be locked
        with self._lock:
            self._pending.difference_update(key for _, key in self._waiting)
            self._waiting.clear()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while (order := self._next()) is not None:
            data, key = order
            try:
                self._make(data, key)
            finally:
                with self._lock:
                    self._pending.discard(key)

    def _next(self) -> tuple[Mapping[Hashable, Any], VariantKey] | None:
        """Next order of this thread; None ends the thread."""
        with self._lock:
            if self._thread is not threading.current_thread():
                return None  # closed in the meantime
            if not self._waiting:
                self._thread = None
                return None
            return self._waiting.popleft()
