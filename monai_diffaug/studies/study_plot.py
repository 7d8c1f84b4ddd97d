"""The picture of a downstream study: one panel per figure, a bar per arm, 95 % intervals, and the generators' training data."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffaug.files.whole_file import whole_file

__all__ = ["plot_study"]

logger = logging.getLogger(__name__)

PANELS = {
    "segmentation": ("dice", "hd95", "fnr_small", "fnr_medium", "fnr_large", "false_alarm"),
    "classification": ("auc", "accuracy", "f1"),
}


def plot_study(summary: Sequence[Mapping[str, Any]], file: Path) -> bool:
    """Write the picture; False (and a warning) where matplotlib is not installed or there is nothing to draw."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no picture of the study: pip install monai_diffaug[demo] brings matplotlib")
        return False
    if not summary:
        return False
    names = [name for name in PANELS[summary[0]["task"]] if any(name in row["figures"] for row in summary)]
    labels = [f"{row['arm']}, {row['n_train']} images" for row in summary]
    figure: Any = Figure(figsize=(3.2 * len(names), 1.2 + 0.45 * len(summary)), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for position, row in enumerate(summary):
            figures = row["figures"].get(name)
            if figures is None:
                continue
            axis.barh(position, figures["value"], color=f"C{position % 10}", alpha=0.6)
            axis.hlines(position, figures["low"], figures["high"], color="black")
            axis.plot(figures["seed_means"], [position] * len(figures["seed_means"]), "k.", markersize=3)
        axis.set_title(f"{name} (px)" if name == "hd95" else name)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    notes = dict.fromkeys(f"{row['arm']}: {row['generator_has_seen']}" for row in summary if row["generator"])
    note = "Lines: 95 % bootstrap interval over test groups; dots: seeds. Seen by the generator: " + ("; ".join(notes) or "no generator")
    figure.supxlabel("\n".join(textwrap.wrap(note, 40 * len(names))), fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part:
        figure.savefig(part, dpi=130, format="png")
    return True
