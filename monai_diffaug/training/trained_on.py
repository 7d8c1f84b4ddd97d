"""A short description of the data of a run; a resumed run must have the same one."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from monai_diffaug.training.labelled_slices import LabelledSlice

__all__ = ["trained_on"]

CAPTIONS_SHOWN = 3
DIGEST_LENGTH = 12


def trained_on(slices: Sequence[LabelledSlice]) -> dict[str, object]:
    """Describe slices, independently of the names, places and order of their files.

    Args:
        slices: of the training, not those that are only shown.

    Returns:
        ``plane`` (empty for 2-D images), ``window``, ``words`` of the captions, and ``data``: the number of lesions and normal slices, and
        a digest of the numbers in the files, the outlines, and the words and data set of each. Empty without slices.
    """
    if not slices:
        return {}
    texts = [", ".join(dict.fromkeys(word for word in (s.modality, s.anatomy, s.finding, s.prompt) if word)) for s in slices]
    ranks = {text: rank for rank, text in enumerate(sorted(set(texts)))}
    arrays = {id(array): array for s in slices for array in (s.stored, s.labelled, s.lesion)}  # the lesions of a slice share two
    digests = {key: _digest(array) for key, array in arrays.items()}
    rows = [
        " ".join([*(digests[id(array)] for array in (s.stored, s.labelled, s.lesion)), str(ranks[text]), s.dataset])
        for s, text in zip(slices, texts, strict=True)
    ]
    normal = sum(not chosen.has_lesion for chosen in slices)
    windows = {(_rounded(s.window.low), _rounded(s.window.high)) for s in slices if s.window is not None}
    return {
        "plane": ", ".join(sorted({chosen.plane for chosen in slices} - {""})),
        "window": list(next(iter(windows))) if len(windows) == 1 else "of each image",
        "words": "; ".join(ranks) if len(ranks) <= CAPTIONS_SHOWN else f"{len(ranks)} captions {_short(sorted(ranks))}",
        "data": f"{len(slices) - normal} lesions, {normal} normal slices, {_short(sorted(rows))}",
    }


def _digest(array: Any) -> str:
    numbers = np.ascontiguousarray(array)
    digest = sha256(f"{numbers.dtype} {numbers.shape}".encode())
    digest.update(numbers.data)
    return digest.hexdigest()


def _short(rows: Sequence[str]) -> str:
    return sha256("\n".join(rows).encode()).hexdigest()[:DIGEST_LENGTH]


def _rounded(value: float) -> float:
    """Six digits: percentiles differ in the last digits between machines."""
    return float(f"{value:.6g}")
