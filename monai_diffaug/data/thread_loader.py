"""MONAI's ``ThreadDataLoader`` swallows what its thread raises, and the epoch just ends early; this one raises it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monai.data import DataLoader, ThreadBuffer, ThreadDataLoader

from monai_diffaug.data.background_threads import close_at_exit

__all__ = ["RaisingThreadDataLoader"]


class _RaisingThreadBuffer(ThreadBuffer):
    """A buffer whose consumer sees the exception of the thread that fills it, after the values before it.

    A loop by steps leaves its iterator behind; the thread then ends with the program.
    """

    error: BaseException | None = None

    def enqueue_values(self) -> None:
        try:
            super().enqueue_values()
        except BaseException as error:
            self.error = error

    def close(self) -> None:
        """End the thread after the value that it is working at."""
        self.stop()

    def __iter__(self) -> Iterator[Any]:
        close_at_exit(self)
        yield from super().__iter__()
        if self.error is not None:
            raise self.error


class RaisingThreadDataLoader(ThreadDataLoader):
    """A ``monai.data.ThreadDataLoader`` (same arguments) in which an error in the data set ends the loop with that error."""

    def __iter__(self) -> Iterator[Any]:
        buffer = _RaisingThreadBuffer(DataLoader.__iter__(self), self.buffer_size, self.buffer_timeout)
        for batch in buffer:
            for _ in range(self.repeats):
                yield batch
