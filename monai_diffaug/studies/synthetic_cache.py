"""Synthetic images of one run, made once in a bounded time and kept in chunks on disk, so that a stopped run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_diffaug.studies.arms import synthesise
from monai_diffaug.studies.cases import Case

__all__ = ["SyntheticImages", "load_or_make"]

CHUNK = 8
MAX_ATTEMPTS = 4  # per wanted image: a validator may reject nearly all


class SyntheticImages(NamedTuple):
    """What was made: the images, the attempts (some are rejected) and the seconds it took."""

    cases: list[Case]
    attempts: int
    seconds: float


def load_or_make(
    folder: Path,
    transform: Callable[[dict[str, Any]], Mapping[Any, Any]],
    real: Sequence[Case],
    count: int,
    *,
    seed: int,
    max_seconds: float,
) -> SyntheticImages:
    """``count`` synthetic images, or as many as ``max_seconds`` (over all calls) and ``4 * count`` attempts give.

    Args:
        folder: of the chunks; what is there counts.
        transform: dictionary transform that makes one of a labelled image.
        real: labelled images.
        count: wanted.
        seed: of all draws: the n-th attempt is the same whether or not the run was stopped before.
        max_seconds: no further attempt is begun after this time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []
    attempts, seconds = 0, 0.0
    chunks = sorted(folder.glob("*.npz"))
    for chunk in chunks:
        found, note = _read(chunk, real[0])
        cases += found
        attempts, seconds = int(note["attempts"]), float(note["seconds"])
    began, fresh, before = time.monotonic(), list[Case](), seconds
    while len(cases) < count and attempts < MAX_ATTEMPTS * count and seconds < max_seconds:
        made = synthesise(transform, real, seed, attempts)
        attempts += 1
        seconds = before + time.monotonic() - began
        if made is not None:
            cases.append(made)
            fresh.append(made)
        if len(fresh) == CHUNK:
            _save(folder / f"{attempts:06d}.npz", fresh, attempts, seconds)
            fresh = []
    if fresh:
        _save(folder / f"{attempts:06d}.npz", fresh, attempts, seconds)
    return SyntheticImages(cases[:count], attempts, seconds)


def _save(file: Path, cases: Sequence[Case], attempts: int, seconds: float) -> None:
    note = {"attempts": attempts, "seconds": seconds, "findings": [c.finding for c in cases]}
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        images, labels = np.stack([c.image for c in cases]), np.stack([c.label for c in cases])
        np.savez_compressed(stream, images=images, labels=labels, note=np.array(json.dumps(note)))
    part.replace(file)


def _read(file: Path, like: Case) -> tuple[list[Case], dict[str, Any]]:
    with np.load(file) as archive:
        images, labels = archive["images"], archive["labels"]
        note: dict[str, Any] = json.loads(str(archive["note"]))
    pairs = zip(images, labels, note["findings"], strict=True)
    return [Case(image, label, finding, like.modality, like.anatomy) for image, label, finding in pairs], note
