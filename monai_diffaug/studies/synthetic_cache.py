"""Synthetic images of one run, made once in a bounded time and kept in chunks on disk, so that a stopped run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.studies.arms import synthesise
from monai_diffaug.studies.masked_images import MaskedImage

__all__ = ["SyntheticImages", "load_or_make"]

CHUNK = 8
MAX_ATTEMPTS = 4  # per image: a validator may reject nearly all


class SyntheticImages(NamedTuple):
    """Images, number of attempts (some are rejected), and seconds spent."""

    cases: list[MaskedImage]
    attempts: int
    seconds: float


def load_or_make(
    folder: Path,
    transform: Callable[[dict[str, Any]], Mapping[Any, Any]],
    real: Sequence[MaskedImage],
    count: int,
    *,
    seed: int,
    max_seconds: float,
) -> SyntheticImages:
    """``count`` synthetic images, or as many as ``max_seconds`` (over all calls) and ``4 * count`` attempts give.

    Args:
        folder: of the chunks; images that are there count.
        transform: dictionary transform that makes one from a labelled image.
        real: labelled images.
        count: number of images.
        seed: of all draws: the n-th attempt is the same whether or not the run was stopped before.
        max_seconds: no further attempt begins after this time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases: list[MaskedImage] = []
    attempts, seconds = 0, 0.0
    chunks = sorted(folder.glob("*.npz"))
    for chunk in chunks:
        stored, note = _read(chunk, real[0])
        cases += stored
        attempts, seconds = int(note["attempts"]), float(note["seconds"])
    began, fresh, before = time.monotonic(), list[MaskedImage](), seconds
    while len(cases) < count and attempts < MAX_ATTEMPTS * count and seconds < max_seconds:
        image = synthesise(transform, real, seed, attempts)
        attempts += 1
        seconds = before + time.monotonic() - began
        if image is not None:
            cases.append(image)
            fresh.append(image)
        if len(fresh) == CHUNK:
            _save(folder / f"{attempts:06d}.npz", fresh, attempts, seconds)
            fresh = []
    if fresh:
        _save(folder / f"{attempts:06d}.npz", fresh, attempts, seconds)
    return SyntheticImages(cases[:count], attempts, seconds)


def _save(file: Path, cases: Sequence[MaskedImage], attempts: int, seconds: float) -> None:
    note = {"attempts": attempts, "seconds": seconds, "findings": [case.finding for case in cases]}
    arrays = {f"{name}_{i}": getattr(case, name).numpy() for i, case in enumerate(cases) for name in ("image", "mask")}
    with whole_file(file) as part, part.open("wb") as stream:
        np.savez_compressed(stream, note=np.array(json.dumps(note)), **arrays)


def _read(file: Path, like: MaskedImage) -> tuple[list[MaskedImage], dict[str, Any]]:
    with np.load(file) as archive:
        note: dict[str, Any] = json.loads(str(archive["note"]))
        return [
            MaskedImage(
                image=torch.from_numpy(archive[f"image_{i}"]),
                mask=torch.from_numpy(archive[f"mask_{i}"]),
                finding=finding,
                modality=like.modality,
                anatomy=like.anatomy,
            )
            for i, finding in enumerate(note["findings"])
        ], note
