"""The folders of the shipped bundles, and copies of them to work in."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["bundle_folder", "bundle_names", "copy_bundle", "own_folders", "own_modules"]

_HERE = Path(__file__).resolve().parent
METADATA = Path("configs", "metadata.json")


def bundle_names() -> tuple[str, ...]:
    """Names of the bundles in this package, sorted."""
    return tuple(sorted(folder.name for folder in _HERE.iterdir() if (folder / METADATA).is_file()))


def bundle_folder(name: str) -> Path:
    """Root of a bundle, e.g. ``bundle_folder("local_augmentation") / "configs" / "train.yaml"``.

    Raises:
        ValueError: there is no bundle of that name.
    """
    if name not in bundle_names():
        raise ValueError(f"there is no bundle {name!r}; there is {', '.join(bundle_names())}")
    return _HERE / name


def copy_bundle(name: str, folder: Path) -> Path:
    """Copy a bundle into a new folder; returns the folder.

    Raises:
        ValueError: there is no bundle of that name.
        FileExistsError: the folder exists; nothing is overwritten.
    """
    source = bundle_folder(name)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; name a new folder")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def own_folders(config: Path) -> tuple[Path, ...]:
    """Folders of a bundle's own modules: its root, and the working directory."""
    folder = config.resolve().parent
    return folder.parent if folder.name == "configs" else folder, Path.cwd()


@contextmanager
def own_modules(config: Path) -> Iterator[None]:
    """Make the modules of a bundle, such as ``scripts``, importable within the block, as ``python -m monai.bundle run`` does.

    Args:
        config: a file in the bundle's ``configs`` folder, or in its root.
    """
    before = list(sys.path)
    sys.path[:0] = map(str, own_folders(config))
    try:
        yield
    finally:
        sys.path[:] = before
