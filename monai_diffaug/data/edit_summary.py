"""A summary of the records of an epoch or of a bulk run: how many edits, and why there was none."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from monai_diffaug.edit.signature import Described

__all__ = ["EditSummary"]

T = TypeVar("T")
NOT_TRIGGERED = "not triggered"
NONE_PLACED = "none was to be placed"
NUMBER = re.compile(r"(?<![\w.])-?\d+(\.\d+)?(e[+-]?\d+)?")


class EditSummary(Described):
    """Count the edits of an epoch, by the records in its samples or batches, and say when most of them failed.

    It reads what the loader returns, so it sees the samples of all worker processes. It does not see records that a transform took out of
    the samples, or samples that the loader dropped.

    Args:
        min_share: least share of edited samples among those that were triggered; fewer give a warning.
        min_samples: number of triggered samples from which on it warns.
        strict: raise RuntimeError instead of warning.
        record_postfix: of the records, see ``InpaintOptions``.

    Attributes:
        samples, triggered, edited, rejected: numbers of records. "triggered" are those whose coin called for an edit, "edited" those with
            ``applied``, "rejected" those that a validator refused.
        reasons: reason -> number of triggered records without an edit, with "#" for numbers.

    Raises:
        ValueError: an option out of range.

    >>> record = {"applied": False, "accepted": True, "reason": "empty mask: no free place was found"}
    >>> summary = EditSummary()
    >>> for batch in summary.watch([{"image_diffaug": record}, {"image_diffaug": {**record, "applied": True, "reason": ""}}]):
    ...     pass  # train
    >>> print(summary)
    1 of 2 triggered samples edited (2 samples)
      1: empty mask: no free place was found
    """

    def __init__(self, min_share: float = 0.5, *, min_samples: int = 10, strict: bool = False, record_postfix: str = "diffaug") -> None:
        if not 0 <= min_share <= 1:
            raise ValueError(f"min_share must be in [0, 1], got {min_share}")
        if min_samples < 1:
            raise ValueError(f"min_samples must be 1 or more, got {min_samples}")
        self.min_share, self.min_samples, self.strict, self.record_postfix = min_share, min_samples, strict, record_postfix
        self.reset()

    def reset(self) -> None:
        """Begin again with all numbers at 0."""
        self.samples = self.triggered = self.edited = self.rejected = 0
        self.reasons: Counter[str] = Counter()

    def add(self, data: Mapping[Hashable, Any]) -> None:
        """Count the records of one sample or of one collated batch."""
        for key, value in data.items():
            if str(key).endswith(f"_{self.record_postfix}") and isinstance(value, Mapping) and {"applied", "reason"} <= set(value):
                for record in _separate(value):
                    self._count(record)

    def watch(self, loader: Iterable[T]) -> Iterator[T]:
        """The samples or batches of one epoch, each counted; ``check`` runs at the end. Numbers begin at 0.

        Raises:
            RuntimeError: with ``strict``, fewer edits than ``min_share``.
        """
        self.reset()
        for batch in loader:
            for item in batch if isinstance(batch, (list, tuple)) else (batch,):
                if isinstance(item, Mapping):
                    self.add(item)
            yield batch
        self.check()

    @property
    def share(self) -> float:
        """Edited samples among those that were triggered; 1 without any."""
        return self.edited / self.triggered if self.triggered else 1.0

    def check(self) -> None:
        """Warn if fewer than ``min_share`` of the triggered samples were edited, or if no record was seen.

        Raises:
            RuntimeError: with ``strict``, in place of the warning.
        """
        if self.samples == 0:
            self._say(
                f"no record *_{self.record_postfix} was in the samples: is an edit in the pipeline, and are records kept (SelectItemsd)?"
            )
        elif self.triggered >= self.min_samples and self.share < self.min_share:
            self._say(f"only {self}")

    def _say(self, message: str) -> None:
        if self.strict:
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=3)

    def _count(self, record: Mapping[str, Any]) -> None:
        reason = NUMBER.sub("#", str(record["reason"]))
        self.samples += 1
        if reason == NOT_TRIGGERED or reason.endswith(NONE_PLACED):
            return
        self.triggered += 1
        self.edited += bool(record["applied"])
        self.rejected += not record.get("accepted", True)
        if not record["applied"]:
            self.reasons[reason or "no reason"] += 1

    def __str__(self) -> str:
        rejected = f", {self.rejected} rejected by the validator" if self.rejected else ""
        lines = [f"{self.edited} of {self.triggered} triggered samples edited{rejected} ({self.samples} samples)"]
        return "\n  ".join([*lines, *(f"{count}: {reason}" for reason, count in self.reasons.most_common())])


def _separate(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The records of a batch, whose fields are lists and tensors; the record itself of a single sample."""
    if isinstance(record["reason"], str):
        yield record
        return
    names = [name for name in ("applied", "accepted", "reason") if name in record]
    for values in zip(*(record[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))
