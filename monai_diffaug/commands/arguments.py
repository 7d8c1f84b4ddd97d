"""Shared by the subcommands: option types with clear errors, the progress rule, the error for wrong input."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

__all__ = [
    "MAX_SEED",
    "PLANES",
    "WrongInputError",
    "box",
    "check_device",
    "check_out",
    "check_place",
    "correlation",
    "finite",
    "positive",
    "seed",
    "shows_progress",
    "size_mm",
    "steps",
    "strength",
    "whole",
    "window",
]

PLANES = ("axial", "coronal", "sagittal")
MAX_SEED = 2**32 - 1
MOST_STEPS = 1000  # timesteps that diffusion models are trained with; no scheduler visits more


class WrongInputError(ValueError):
    """The command line or a file it names is wrong."""


def finite(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise argparse.ArgumentTypeError(f"{text!r} is not finite")
    return value


def numbers(text: str, names: str) -> list[float]:
    """As many finite numbers as there are names, separated by commas."""
    parts = text.split(",")
    if len(parts) != len(names.split(",")):
        raise argparse.ArgumentTypeError(f"expected {names}, got {text!r}")
    return [finite(part) for part in parts]


def box(text: str) -> tuple[float, ...]:
    """X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1; or six numbers, with slices Z0 < Z1."""
    if text.count(",") == 5:
        x0, y0, x1, y1, z0, z1 = numbers(text, "X0,Y0,X1,Y1,Z0,Z1")
        if not z0 < z1:
            raise argparse.ArgumentTypeError(f"a box needs Z0 < Z1, got {text}")
        return (*box(f"{x0},{y0},{x1},{y1}"), z0, z1)
    x0, y0, x1, y1 = numbers(text, "X0,Y0,X1,Y1")
    if not (x0 < x1 and y0 < y1):
        raise argparse.ArgumentTypeError(f"a box needs X0 < X1 and Y0 < Y1, got {text}")
    return x0, y0, x1, y1


def size_mm(text: str) -> tuple[float, float]:
    """MM or SMALLEST,LARGEST, above 0."""
    parts = numbers(text, "MM,MM") if "," in text else [finite(text)] * 2
    if not 0 < parts[0] <= parts[1]:
        raise argparse.ArgumentTypeError(f"must be MM or SMALLEST,LARGEST above 0, got {text}")
    return parts[0], parts[1]


def window(text: str) -> tuple[float, float]:
    """LO,HI with LO < HI."""
    low, high = numbers(text, "LO,HI")
    if not low < high:
        raise argparse.ArgumentTypeError(f"a window needs LO < HI, got {text}")
    return low, high


def whole(text: str, least: int, most: int) -> int:
    """A whole number from ``least`` to ``most``."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"must be in {least} to {most}, got {value}")
    return value


def positive(text: str) -> int:
    """1 to 100 000."""
    return whole(text, 1, 100_000)


def steps(text: str) -> int:
    """Number of steps of a sampler, 1 to 1000."""
    return whole(text, 1, MOST_STEPS)


def seed(text: str) -> int:
    """A uint32."""
    return whole(text, 0, MAX_SEED)


def strength(text: str) -> float:
    """In (0, 1]."""
    value = finite(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text}")
    return value


def correlation(text: str) -> float:
    """In [0, 1]."""
    value = finite(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {text}")
    return value


def shows_progress(options: argparse.Namespace) -> bool:
    """Progress bars: on a terminal, unless --quiet."""
    return sys.stderr.isatty() and not options.quiet


def check_out(folder: Path) -> None:
    """Raise WrongInputError if the output folder is a file or cannot be made or written; called before the work begins."""
    if folder.exists() and not folder.is_dir():
        raise WrongInputError(f"--out {folder} is a file; give a folder")
    check_place(folder)


def check_place(path: Path) -> None:
    """Raise WrongInputError if an output cannot be made or written; the existing part of its path decides."""
    existing = next((place for place in (path, *path.parents) if place.exists()), path)
    if existing != path and not existing.is_dir():
        raise WrongInputError(f"--out {path} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise WrongInputError(f"--out {path}: no right to write {existing}")


def check_device(device: str) -> None:
    """Raise WrongInputError if the device is not available."""
    import torch

    try:
        torch.zeros(1, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise WrongInputError(f"--device {device} cannot be used here: {str(error).strip().splitlines()[0]}") from error
