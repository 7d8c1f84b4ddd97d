"""The leakage rule: a synthetic case trains in a fold only where all groups it comes from train. All exports and the audit use it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

__all__ = ["Split", "assign_folds", "may_train", "one_fold_each", "splits_of", "training_groups"]


@dataclass(frozen=True)
class Split:
    """Names of the cases of one fold. Validation cases are real."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


def may_train(parents: Iterable[str], training: AbstractSet[str]) -> bool:
    """True if every group that a case comes from (its source's and its lesion donor's) is a training group.

    A group that the data set does not have is no training group.

    >>> may_train(["patient 1", "patient 2"], {"patient 1", "patient 2", "patient 3"})
    True
    >>> may_train(["patient 1", "patient 9"], {"patient 1", "patient 2", "patient 3"})
    False
    """
    return all(group in training for group in parents)


def training_groups(fold_of: Mapping[str, int | None], count: int) -> tuple[frozenset[str], ...]:
    """Groups that train in each fold: all that do not validate in it.

    Args:
        fold_of: group -> fold in which the group validates; None for a group that always trains.
        count: number of folds.

    >>> [sorted(groups) for groups in training_groups({"a": 0, "b": 1, "c": None}, 2)]
    [['b', 'c'], ['a', 'c']]
    """
    return tuple(frozenset(group for group, fold in fold_of.items() if fold != k) for k in range(count))


def splits_of(
    real: Mapping[str, str], synthetic: Mapping[str, Sequence[str]], fold_of: Mapping[str, int | None], count: int
) -> tuple[Split, ...]:
    """Training and validation cases of each fold.

    Args:
        real: case -> group.
        synthetic: case -> groups that it comes from.
        fold_of: group -> fold in which it validates; None for a group that always trains.
        count: number of folds.

    >>> splits_of({"scan": "a", "other": "b"}, {"scan-000": ["a"]}, {"a": 0, "b": 1}, 2)[1]
    Split(training=('scan', 'scan-000'), validation=('other',))
    """
    return tuple(
        Split(
            tuple(case for case, group in real.items() if group in training)
            + tuple(case for case, parents in synthetic.items() if may_train(parents, training)),
            tuple(case for case, group in real.items() if fold_of[group] == k),
        )
        for k, training in enumerate(training_groups(fold_of, count))
    )


def assign_folds(groups: Iterable[str], count: int) -> dict[str, int | None]:
    """Spread groups over folds of nearly equal numbers of cases; the result depends on the names only.

    Args:
        groups: group of each case.
        count: number of folds, at least 2; fewer where there are fewer groups.

    Raises:
        ValueError: fewer than two groups.

    >>> sorted(assign_folds(["a", "a", "b", "c"], 2).values())
    [0, 1, 1]
    """
    sizes = Counter(groups)
    if len(sizes) < 2 or count < 2:
        raise ValueError(
            f"{len(sizes)} group(s) of real cases cannot be split into {count} folds; the datalist needs cases of two patients or more "
            '("group"), or a "validation" list'
        )
    totals: dict[int, int] = dict.fromkeys(range(min(count, len(sizes))), 0)
    folds: dict[str, int | None] = {}
    for group in sorted(sizes, key=lambda name: (-sizes[name], hashlib.sha256(name.encode()).hexdigest())):
        fold = min(totals, key=lambda k: (totals[k], k))
        folds[group] = fold
        totals[fold] += sizes[group]
    return folds


def one_fold_each(folds: Iterable[tuple[str, int | None]]) -> dict[str, int | None]:
    """Group -> fold of (group, fold) pairs.

    Raises:
        ValueError: a group is in several folds, or folds are missing between 0 and the last one.

    >>> one_fold_each([("a", 0), ("a", 0), ("b", 1)])
    {'a': 0, 'b': 1}
    """
    of_group = defaultdict(set)
    for group, fold in folds:
        of_group[group].add(fold)
    apart = {group: several for group, several in of_group.items() if len(several) > 1}
    if apart:
        group, several = next(iter(apart.items()))
        names = ", ".join("training" if fold is None else f"fold {fold}" for fold in sorted(several, key=lambda f: -1 if f is None else f))
        raise ValueError(f"{len(apart)} group(s) are in several folds, e.g. {group!r} in {names}; give all entries of a group one fold")
    numbers = {fold for several in of_group.values() for fold in several if fold is not None}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"the folds are numbered {sorted(numbers)}; number them from 0 without gaps")
    return {group: next(iter(several)) for group, several in of_group.items()}
