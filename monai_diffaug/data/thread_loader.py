"""A ``ThreadDataLoader`` that raises the errors of its thread; MONAI's ignores them, and the epoch ends early."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monai.data import DataLoader, ThreadBuffer, ThreadDataLoader

from monai_diffaug.data.background_threads import close_at_exit

__all__ = ["RaisingThreadDataLoader"]


class _RaisingThreadBuffer(ThreadBuffer):
    """A buffer that raises the exception of its thread in the consumer, after the values before it.

    A training loop may leave the iterator unfinished; then the thread is stopped at interpreter exit.
    """

    error: BaseException | None = None

    def enqueue_values(self) -> None:
        try:
            super().enqueue_values()
        except BaseException as error:
            self.error = error

    def close(self) -> None:
        """Stop the thread after its current value."""
        self.stop()

    def __iter__(self) -> Iterator[Any]:
        close_at_exit(self)
        yield from super().__iter__()
        if self.error is not None:
            raise self.error


class RaisingThreadDataLoader(ThreadDataLoader):
    """A ``monai.data.ThreadDataLoader`` (same arguments) whose loop raises the errors of the data set.

    >>> from monai.data import Dataset
    >>> len(list(RaisingThreadDataLoader(Dataset([1, 2, 3]), batch_size=2, num_workers=0)))
    2
    """

    def __iter__(self) -> Iterator[Any]:
        buffer = _RaisingThreadBuffer(DataLoader.__iter__(self), self.buffer_size, self.buffer_timeout)
        for batch in buffer:
            for _ in range(self.repeats):
                yield batch
