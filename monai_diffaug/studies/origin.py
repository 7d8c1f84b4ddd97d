"""A note of the weights and images behind stored synthetic images, so that others under the same path do not pass for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.studies.report import write_json

__all__ = ["digest_of", "require_origin"]

FILE = "made_of.json"
NOT_THE_MODEL = "training"  # next to fine-tuned weights: pictures, logs, state


@cache
def digest_of(network: str, source: str) -> str:
    """Digest of the files behind a source, read once per process; a hub id stands for itself.

    Args:
        network: its embedded folder's name, e.g. "inpainter".
        source: "tiny", a file, a folder or a hub id.
    """
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
    """Write the origin of a folder's images next to them; images without a note are used as they are.

    Raises:
        ValueError: they have another origin.
    """
    file = folder / FILE
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name, value in origin.items() if known.get(name) != value]
        if differing:
            made_of = ", ".join(differing)
            raise ValueError(f"{folder} holds images that are made of another {made_of}; use another --out, or delete it and its runs")
    elif not any(folder.glob("*.npz")):
        write_json(origin, file)
