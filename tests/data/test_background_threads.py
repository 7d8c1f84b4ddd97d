from __future__ import annotations

import gc
import weakref

from monai_diffaug.data import background_threads as at_exit


class Worker:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_what_is_open_at_the_end_of_the_program_is_closed() -> None:
    worker = Worker()
    at_exit.close_at_exit(worker)
    at_exit.close_at_exit(worker)
    at_exit._close_all()
    assert worker.closed == 1


def test_what_is_to_be_closed_is_not_kept_alive() -> None:
    worker = Worker()
    at_exit.close_at_exit(worker)
    trace = weakref.ref(worker)
    del worker
    gc.collect()
    assert trace() is None
