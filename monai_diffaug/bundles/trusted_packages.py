"""Look up classes and modules of a config in a few installed packages; nothing else is imported."""

from __future__ import annotations

import contextlib
import importlib.machinery
import pydoc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["PACKAGES", "exists", "is_trusted", "locate_trusted"]

PACKAGES = ("ignite", "monai", "monai_diffaug", "numpy", "torch")


def is_trusted(name: str) -> bool:
    """Whether a dotted name is in one of the packages.

    >>> is_trusted("torch.nn.Linear"), is_trusted("torchx.Linear")
    (True, False)
    """
    return name.partition(".")[0] in PACKAGES


def locate_trusted(name: str) -> Any:
    """The class, function or module of a dotted name in one of the packages; None if there is none.

    Raises:
        pydoc.ErrorDuringImport: its module cannot be imported, e.g. because an optional package is missing.
        ValueError: the name is in another package.
    """
    if not is_trusted(name):
        raise ValueError(f"{name} is in none of {', '.join(PACKAGES)}")
    with _without_working_directory():
        return pydoc.locate(name)


def exists(name: str, folders: tuple[Path, ...]) -> bool:
    """Whether there is a module of the first part of a dotted name, installed or in these folders; it is not imported."""
    top = name.partition(".")[0]
    if top in sys.builtin_module_names or top in sys.modules:
        return True
    return importlib.machinery.PathFinder.find_spec(top, [*map(str, folders), *sys.path]) is not None


@contextlib.contextmanager
def _without_working_directory() -> Iterator[None]:
    """A folder of the name of a package, in the working directory, is not imported in its place."""
    before, here = list(sys.path), Path.cwd()
    sys.path[:] = [entry for entry in before if entry and Path(entry).resolve() != here]
    try:
        yield
    finally:
        sys.path[:] = before
