"""Places of results: an input, another image's result or a foreign file there is never replaced."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_diffaug.commands.arguments import WrongInputError
from monai_diffaug.files.picture import output_suffix
from monai_diffaug.files.whole_file import content_hash, same_place

__all__ = ["check_result_places"]


def check_result_places(
    folder: Path, names: Sequence[str], image: Path, image_sha256: str, *, others: Sequence[Path] = (), overwrite: bool = False
) -> None:
    """Check that results may be written to ``folder``; whether two images are the same is decided by their content.

    Args:
        folder: of the results; it need not exist.
        names: stems of the results.
        image: the edited image.
        image_sha256: its ``content_hash``.
        others: label and mask, which are inputs too.
        overwrite: also replace files that are no result of this image; inputs and read-only files stay.

    Raises:
        WrongInputError: an input, a read-only file, a result of another image, or a file that this package did not write would be
            replaced.
    """
    for name in names:
        record = folder / f"{name}.json"
        suffixes = {output_suffix(file) for file in (image, *others)}
        places = [folder / f"{name}{part}{suffix}" for suffix in sorted(suffixes) for part in ("", "_mask", "_label")]
        places.append(folder / f"{name}_preview.png")
        existing = [place for place in (*places, record) if os.path.lexists(place)]
        for place in existing:
            _require_replaceable(place, (image, *others))
        if existing and not overwrite:
            _require_earlier_result(record, existing, image, image_sha256)


def _require_replaceable(place: Path, inputs: Sequence[Path]) -> None:
    for file in inputs:
        if same_place(file, place):
            same = "" if file.absolute() == place.absolute() else f", which is the same file as {place}"
            raise WrongInputError(f"{file}{same}, would be written over; give another --out")
    mode = place.lstat().st_mode
    if stat.S_ISDIR(mode):
        raise WrongInputError(f"{place} is a folder, a result would have this name; give another --out")
    if stat.S_ISREG(mode) and not mode & 0o222:
        raise WrongInputError(f"{place} is read-only and is not replaced; give another --out")


def _require_earlier_result(record: Path, existing: Sequence[Path], image: Path, image_sha256: str) -> None:
    earlier = _read(record)
    if earlier is None:
        raise WrongInputError(
            f"{existing[0]} is there and {record.name} does not say that it is a result of {image}; give another --out, or --overwrite"
        )
    source, hashes = earlier["input"], earlier["sha256"]
    if source["image_sha256"] != image_sha256:
        raise WrongInputError(f"{record} is of another image, {source.get('image')}, than {image}; give another --out, or --overwrite")
    for place in existing:
        if place != record and (place.is_symlink() or hashes.get(place.name) != content_hash(place)):
            raise WrongInputError(
                f"{place} is not as {record.name} describes it, it was changed or added; give another --out, or --overwrite"
            )


def _read(record: Path) -> dict[str, Any] | None:
    """The record of an earlier result; None if the file is no such record."""
    try:
        earlier: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        is_record = isinstance(earlier["input"]["image_sha256"], str) and isinstance(earlier["sha256"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return earlier if is_record else None
