"""The table of a downstream study: figures of each arm with bootstrap intervals, and the data that its generator had seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.studies.bootstrap import interval, mean_interval
from monai_diffaug.studies.classification import accuracy, auc, f1
from monai_diffaug.studies.segmentation import SIZES

__all__ = ["BASELINE", "summarise", "table_of"]

BASELINE = "none"
RESAMPLES = 20_000  # with 1000 the ends of an interval move by .3 points from seed to seed
SCORES: dict[str, Callable[[Any, Any], float]] = {"auc": auc, "accuracy": accuracy, "f1": f1}


def summarise(runs: Sequence[Mapping[str, Any]], resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """One row for each arm and number of labelled images.

    Images are averaged over the seeds first; the interval resamples the groups of the test images ("seed_means" shows the spread of the
    seeds). "gain" is the paired difference to the arm "none" on the same images; of "none" with more labelled images,
    to "none" with the fewest.

    Args:
        runs: results of ``monai_diffaug.studies.downstream.run_arm``.
        resamples: of the bootstrap.
    """
    table: dict[tuple[int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        table[(int(run["n_train"]), str(run["arm"]))].append(run)
    rows = []
    fewest = min((n for n, arm in table if arm == BASELINE), default=0)
    for (n, arm), members in table.items():
        baseline = table.get((fewest if arm == BASELINE else n, BASELINE), [])
        row: dict[str, Any] = {
            "arm": arm,
            "task": members[0]["task"],
            "n_train": n,
            "seeds": len(members),
            "steps": members[0]["settings"]["steps"],
            "n_synthetic": [run["n_synthetic"] for run in members],
            "generator": members[0]["generator"]["source"],
            "networks": {k: v for k, v in members[0]["generator"].items() if k not in ("source", "seen") and v},
            "generator_has_seen": members[0]["generator"]["seen"],
            "method": members[0].get("method", ""),
        }
        by_task = _segmentation if members[0]["task"] == "segmentation" else _classification
        row["figures"] = by_task(members, [] if baseline is members else baseline, resamples)
        rows.append(row)
    return rows


def _segmentation(members: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"dice": _mean(members, "dice", lambda row: True, resamples)}
    figures["dice_gain"] = _gain(members, baseline, "dice", resamples) if baseline else None
    for name in ("hd95", "missed", "false_alarm"):
        figures[name] = _mean(members, name, lambda row: True, resamples)
    for size in SIZES:
        figures[f"fnr_{size}"] = _mean(members, "fnr", partial(_is_of, size), resamples)
    return {name: value for name, value in figures.items() if value is not None}


def _is_of(size: str, row: Mapping[str, Any]) -> bool:
    return bool(row.get("size") == size)


def _columns(members: Sequence[Mapping[str, Any]], name: str, keep: Callable[[Any], bool]) -> tuple[NDArray[np.float64], list[int]]:
    """(seeds, images) of a figure, and the images' groups."""
    kept = [[row for row in run["images"] if name in row and keep(row)] for run in members]
    return np.array([[row[name] for row in rows] for rows in kept], np.float64), [int(row["group"]) for row in kept[0]]


def _mean(members: Sequence[Mapping[str, Any]], name: str, keep: Callable[[Any], bool], resamples: int) -> dict[str, Any] | None:
    values, groups = _columns(members, name, keep)
    if values.size == 0:
        return None
    return _with_seeds(values, groups, resamples)


def _with_seeds(values: NDArray[np.float64], groups: Sequence[int], resamples: int) -> dict[str, Any]:
    """The mean of values (seeds, images) with its interval, and the mean of each seed."""
    return {**asdict(mean_interval(values.mean(0), groups, resamples=resamples)), "seed_means": [float(v) for v in values.mean(1)]}


def _paired(
    members: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """A figure (seeds, images) of an arm and of its baseline, over the seeds that both have, and the images' groups."""
    shared = {run["seed"] for run in members} & {run["seed"] for run in baseline}
    ours, groups = _columns([run for run in members if run["seed"] in shared], name, lambda row: True)
    theirs, _ = _columns([run for run in baseline if run["seed"] in shared], name, lambda row: True)
    return ours, theirs, groups


def _gain(members: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], name: str, resamples: int) -> dict[str, Any]:
    ours, theirs, groups = _paired(members, baseline, name)
    return _with_seeds(ours - theirs, groups, resamples)


def _classification(members: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
    probabilities, groups = _columns(members, "probability", lambda row: True)
    targets, _ = _columns(members, "target", lambda row: True)
    truth = targets[0]
    everything = np.arange(len(groups))
    figures: dict[str, Any] = {}
    for name, score in SCORES.items():
        by_seed = partial(_scores, score, probabilities, truth)
        score_interval = interval(partial(_mean_score, by_seed), groups, resamples=resamples)
        figures[name] = {**asdict(score_interval), "seed_means": by_seed(everything)}
        if name == "auc" and baseline:
            figures["auc_gain"] = _auc_gain(members, baseline, resamples)
    return figures


def _scores(
    score: Callable[[Any, Any], float], probabilities: NDArray[np.float64], truth: NDArray[np.float64], picks: NDArray[np.int64]
) -> list[float]:
    """The score of each seed's probabilities (seeds, images) on the picked images."""
    return [score(p[picks], truth[picks]) for p in probabilities]


def _mean_score(by_seed: Callable[[NDArray[np.int64]], list[float]], picks: NDArray[np.int64]) -> float:
    return float(np.mean(by_seed(picks)))


def _auc_gain(members: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
    """Both arms are scored on the same resampled groups."""
    ours, theirs, groups = _paired(members, baseline, "probability")
    truth = _columns(members, "target", lambda row: True)[0][0]

    def by_seed(picks: NDArray[np.int64]) -> list[float]:
        return [our - their for our, their in zip(_scores(auc, ours, truth, picks), _scores(auc, theirs, truth, picks), strict=True)]

    gain = interval(partial(_mean_score, by_seed), groups, resamples=resamples)
    return {**asdict(gain), "seed_means": by_seed(np.arange(len(groups)))}


def table_of(summary: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; figures in percent except HD95, which is in pixels; 95 % intervals over the test images.

    Below it a line per method: its description, its networks, and the data that its generator had seen.
    """
    if not summary:
        return ""
    fullest_first = sorted(summary, key=lambda row: -len(row["figures"]))  # the baseline has no gain
    names = list(dict.fromkeys(name for row in fullest_first for name in row["figures"]))
    lines = ["| arm | images | synthetic | seeds | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 4)]
    for row in summary:
        cells = [_cell(name, row["figures"].get(name)) for name in names]
        made = " / ".join(map(str, dict.fromkeys(np.ravel(row["n_synthetic"]).tolist())))
        lines.append(f"| {row['arm']} | {row['n_train']} | {made} | {row['seeds']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *dict.fromkeys(map(_method, summary))])


def _method(row: Mapping[str, Any]) -> str:
    """Description of an arm and the data that its generator had seen, as an item of a list."""
    networks = "".join(f", {name.replace('_', ' ')} `{source}`" for name, source in row.get("networks", {}).items())
    generator = f"Generator `{row['generator']}`{networks}, has seen: {row['generator_has_seen']}." if row["generator"] else "No generator."
    return f"- `{row['arm']}`: {row['method']} {generator}".replace(":  ", ": ")


def _cell(name: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    scale = 1.0 if name == "hd95" else 100.0
    sign = "+" if name.endswith("gain") else ""
    return f"{scale * figure['value']:{sign}.1f} [{scale * figure['low']:.1f}, {scale * figure['high']:.1f}]"
