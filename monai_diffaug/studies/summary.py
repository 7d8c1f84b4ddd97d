"""The table of a downstream study: figures of each arm with bootstrap intervals, and the data that its generator had seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffaug.studies.bootstrap import interval
from monai_diffaug.studies.downstream_tasks import SIZES, accuracy, auc, f1

__all__ = ["BASELINE", "summarise", "table_of"]

BASELINE = "none"
RESAMPLES = 20_000  # with 1000 the ends of an interval move by .3 points from seed to seed
SCORES: dict[str, Callable[[Any, Any], float]] = {"auc": auc, "accuracy": accuracy, "f1": f1}

Runs = Sequence[Mapping[str, Any]]
"""Results of ``monai_diffaug.studies.downstream.run_arm``."""
OfPicks = Callable[[NDArray[np.int64]], list[float]]
"""From indices of images to one value per seed."""


def summarise(runs: Runs, resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """One row for each arm and number of labelled images.

    Figures are means over the seeds; the interval resamples the groups of the test images ("seed_means" shows the spread of the seeds).
    "gain" is the paired difference to the arm "none" on the same images; of "none" with more labelled images, to "none" with the fewest.
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


def _segmentation(members: Runs, baseline: Runs, resamples: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in ("dice", "hd95", "missed", "false_alarm", *(f"fnr_{size}" for size in SIZES)):
        values, groups = _columns(members, *name.split("_")) if name.startswith("fnr") else _columns(members, name)
        if values.size:
            figures[name] = _figure(_means(values), groups, resamples)
        if name == "dice" and baseline:
            arm, reference, groups = _paired(members, baseline, "dice")
            figures["dice_gain"] = _figure(_means(arm - reference), groups, resamples)
    return figures


def _classification(members: Runs, baseline: Runs, resamples: int) -> dict[str, Any]:
    probabilities, groups = _columns(members, "probability")
    truth = _columns(members, "target")[0][0]
    figures = {name: _figure(_scores(score, probabilities, truth), groups, resamples) for name, score in SCORES.items()}
    if baseline:
        arm, reference, groups = _paired(members, baseline, "probability")
        ours, theirs = _scores(auc, arm, truth), _scores(auc, reference, truth)  # scored on the same resampled groups
        gain = _figure(lambda picks: [a - b for a, b in zip(ours(picks), theirs(picks), strict=True)], groups, resamples)
        figures = {"auc": figures.pop("auc"), "auc_gain": gain, **figures}
    return figures


def _columns(members: Runs, name: str, size: str | None = None) -> tuple[NDArray[np.float64], list[int]]:
    """(seeds, images) of a figure, of lesions of one size or of all images that have it, and the images' groups."""
    rows = [[row for row in run["images"] if name in row and size in (None, row.get("size"))] for run in members]
    return np.array([[row[name] for row in of_seed] for of_seed in rows], np.float64), [int(row["group"]) for row in rows[0]]


def _paired(members: Runs, baseline: Runs, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """A figure (seeds, images) of an arm and of its baseline, over the seeds that both have, and the images' groups."""
    shared = {run["seed"] for run in members} & {run["seed"] for run in baseline}
    columns = [_columns([run for run in runs if run["seed"] in shared], name) for runs in (members, baseline)]
    return columns[0][0], columns[1][0], columns[0][1]


def _means(values: NDArray[np.float64]) -> OfPicks:
    return lambda picks: [float(mean) for mean in values[:, picks].mean(1)]


def _scores(score: Callable[[Any, Any], float], probabilities: NDArray[np.float64], truth: NDArray[np.float64]) -> OfPicks:
    return lambda picks: [score(of_seed[picks], truth[picks]) for of_seed in probabilities]


def _figure(of_picks: OfPicks, groups: Sequence[int], resamples: int) -> dict[str, Any]:
    """The mean over the seeds with its interval, and each seed's value."""
    mean = interval(lambda picks: float(np.mean(of_picks(picks))), groups, resamples=resamples)
    return {**asdict(mean), "seed_means": of_picks(np.arange(len(groups)))}


def table_of(summary: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, in percent (HD95: pixels) with 95 % intervals; below it a line per method with its networks and their data."""
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
