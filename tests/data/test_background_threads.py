from __future__ import annotations

import gc
import weakref

from monai_diffaug.data import background_threads


class Worker:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_an_owner_is_closed_once_at_interpreter_exit() -> None:
    worker = Worker()
    background_threads.close_at_exit(worker)
    background_threads.close_at_exit(worker)
    background_threads._close_all()
    assert worker.closed == 1


def test_an_owner_is_not_kept_alive() -> None:
    worker = Worker()
    background_threads.close_at_exit(worker)
    reference = weakref.ref(worker)
    del worker
    gc.collect()
    assert reference() is None
