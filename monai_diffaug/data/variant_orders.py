"""Orders that a thread works through in the background, and that leave nothing behind: no idle thread, no crash at exit."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai_diffaug.data.background_threads import close_at_exit
from monai_diffaug.data.variant_store import VariantKey

__all__ = ["PENDING", "VariantOrders"]

PENDING = 64  # variants ordered at once; an order holds its sample in memory


class VariantOrders:
    """One thread that makes what is ordered, one variant after the other; it ends when no order is left.

    At the end of the program the variant that is being made is finished, and the orders behind it are dropped.

    Args:
        make: makes a variant of a sample; it must not raise.
    """

    def __init__(self, make: Callable[[Mapping[Hashable, Any], VariantKey], None]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Mapping[Hashable, Any], VariantKey]] = deque()
        self._taken: set[VariantKey] = set()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        close_at_exit(self)

    def place(self, data: Mapping[Hashable, Any], key: VariantKey) -> None:
        """Order a variant, unless one of its sample is ordered already or there are enough orders: a later draw will ask again."""
        with self._lock:
            if len(self._taken) >= PENDING or any(other.sample == key.sample for other in self._taken):
                return
            self._taken.add(key)
            self._waiting.append((dict(data), key))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="variants", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Drop what is waiting and return when the variant that is being made is done."""
        if self._pid != os.getpid():
            return  # a forked child has neither the thread nor a lock that it could trust
        with self._lock:
            self._taken.difference_update(key for _, key in self._waiting)
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
                    self._taken.discard(key)

    def _next(self) -> tuple[Mapping[Hashable, Any], VariantKey] | None:
        """The next order of this thread; None ends it."""
        with self._lock:
            if self._thread is not threading.current_thread():
                return None  # closed meanwhile
            if not self._waiting:
                self._thread = None
                return None
            return self._waiting.popleft()
