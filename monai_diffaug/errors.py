"""Errors that say what was expected, what came and what to do; each refines the built-in error that a caller would catch."""

from __future__ import annotations

__all__ = ["DroppedSampleError", "GridMismatchError", "MissingExtraError", "ModelSourceError", "WorkerDeviceError", "one_line"]

LONGEST_REASON = 160  # characters of a library's message that are quoted


class GridMismatchError(ValueError):
    """Two arrays of one sample are not on the same voxel grid."""


class ModelSourceError(FileNotFoundError):
    """A model source does not name a model that this machine can load."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


class WorkerDeviceError(RuntimeError):
    """A forked worker process requested CUDA, which cannot be initialised there."""


class DroppedSampleError(RuntimeError):
    """A validator with ``on_reject="drop"`` rejected a sample; catch it to skip the sample."""


def one_line(error: BaseException) -> str:
    """Text of an error on one line, cut to 160 characters; its type if it has no text.

    >>> one_line(ValueError("first line\\n  second line"))
    'first line second line'
    >>> one_line(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."
