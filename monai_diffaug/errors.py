"""Errors that say what was expected, what came and what to do; each refines the built-in a caller would catch."""

from __future__ import annotations

__all__ = ["DroppedSampleError", "GridMismatchError", "MissingExtraError", "ModelSourceError", "WorkerDeviceError"]


class GridMismatchError(ValueError):
    """Two arrays of one sample are not on the same voxel grid."""


class ModelSourceError(FileNotFoundError):
    """A model source names no model that can be loaded from here."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class WorkerDeviceError(RuntimeError):
    """CUDA was asked for in a forked worker process, where it cannot be initialised."""


class DroppedSampleError(RuntimeError):
    """A validator with ``on_reject="drop"`` refused a sample; catch it to skip the sample."""
