"""Synthetic images of one run, made once in a bounded time and stored in chunks, so that a stopped run goes on; and their origin."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.studies.arms import synthesise
from monai_diffaug.studies.masked_images import MaskedImage
from monai_diffaug.studies.report import write_json

__all__ = ["SyntheticImages", "digest_of", "load_or_make", "require_origin"]

CHUNK = 8
ORIGIN_FILE = "made_of.json"
NOT_THE_MODEL = "training"  # next to fine-tuned weights: pictures, logs, state
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
    """``count`` synthetic images, those in ``folder`` included, or as many as ``max_seconds`` in all and ``4 * count`` attempts give.

    The n-th attempt (see ``synthesise``) is the same whether or not the run was stopped before.
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


@cache
def digest_of(network: str, source: str) -> str:
    """Digest of the files behind a source of a network, e.g. "inpainter", read once per process; a hub id stands for itself."""
    place = tiny_folder(network) if source == "tiny" else Path(source)
    if not place.exists():
        return source
    inside = [file for file in place.rglob("*") if file.is_file() and NOT_THE_MODEL not in file.relative_to(place).parts]
    files = [place] if place.is_file() else sorted(inside)
    total = hashlib.sha256()
    for file in files:
        total.update(str(file.relative_to(place.parent)).encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def require_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Write the origin of a folder's images next to them, or raise ValueError if they have another; images without a note are used."""
    file = folder / ORIGIN_FILE
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name, value in origin.items() if known.get(name) != value]
        if differing:
            made_of = ", ".join(differing)
            raise ValueError(f"{folder} holds images that are made of another {made_of}; use another --out, or delete it and its runs")
    elif not any(folder.glob("*.npz")):
        write_json(origin, file)
