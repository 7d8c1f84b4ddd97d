"""Measure: ``monai-diffaug evaluate speed [inpainting|profile|medsam|training-step|scaling|quality|all] [--quick] [--out FILE]``.

Prints tables; ``--out`` writes the figures with a description of the machine as JSON, ``--figures FILE ... --readme README.md`` puts
the tables of such files into the README. On a CPU one thread works and CPU time is measured. Exits with 1 when two arms that must be equal
are not: then no speed is told of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from monai_diffaug.studies.speed.inpainting_speed import measure_inpainting
from monai_diffaug.studies.speed.machine import describe_machine
from monai_diffaug.studies.speed.medsam_speed import measure_medsam
from monai_diffaug.studies.speed.operator_profile import measure_profile
from monai_diffaug.studies.speed.quality_cost import measure_quality
from monai_diffaug.studies.speed.scaling import measure_scaling
from monai_diffaug.studies.speed.scheduler_step import measure_scheduler_step
from monai_diffaug.studies.speed.speed_settings import FULL, QUICK, Amount
from monai_diffaug.studies.speed.speed_table import insert_tables, render
from monai_diffaug.studies.speed.timing import single_threaded
from monai_diffaug.studies.speed.training_step import measure_training_step
from monai_diffaug.training.embedded.datasets import data_root
from monai_diffaug.version import __version__

__all__ = ["main", "measure"]

logger = logging.getLogger(__name__)

Measurement = Callable[[torch.device, Amount], Any]
MEASUREMENTS: Mapping[str, tuple[tuple[str, Measurement], ...]] = {
    "inpainting": (("scheduler_step", measure_scheduler_step), ("inpainting", measure_inpainting)),
    "profile": (("profile", measure_profile),),
    "medsam": (("medsam", measure_medsam),),
    "training-step": (("training_step", measure_training_step),),
    "scaling": (("scaling", measure_scaling),),
    "quality": (("quality", measure_quality),),
}


def measure(subjects: list[str], device: torch.device, amount: Amount, after: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The figures of some subjects with the machine.

    Args:
        subjects: names in ``MEASUREMENTS``.
        device: where the models run.
        amount: how much is measured.
        after: called with all figures so far after each subject, so that an interrupted run leaves something.
    """
    figures: dict[str, Any] = {
        "version": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "device": device.type,
        "machine": describe_machine(),
        "amount": asdict(amount),
    }
    for subject in subjects:
        if subject == "quality" and data_root() is None:
            logger.warning("no real data: the quality of the levers that are not exact is left out")
            continue
        for name, run in MEASUREMENTS[subject]:
            logger.info("%s", name)
            figures[name] = run(device, amount)
            after(figures)
    return figures


def merged(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of several runs, such as one a subject, as those of one.

    Raises:
        ValueError: they were made on different machines, with different versions, or measured different amounts.
    """
    for name in ("version", "device", "machine", "amount"):
        if any(run[name] != runs[0][name] for run in runs):
            raise ValueError(f"the runs differ in {name}: figures of one table must be of one machine, version and amount")
    return {name: value for run in runs for name, value in run.items()}


def failed_gates(figures: Mapping[str, Any]) -> int:
    """How many rows were not timed because the arms differ."""
    rows = [*figures.get("inpainting", {}).get("edits", []), *figures.get("medsam", {}).get("masks", [])]
    return sum(not row["passed"] for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="monai-diffaug evaluate speed", description=__doc__)
    parser.add_argument("subject", nargs="?", default="all", choices=[*MEASUREMENTS, "all"])
    parser.add_argument("--quick", action="store_true", help="few rounds, small slices and the embedded models alone: minutes")
    parser.add_argument("--rounds", type=int, help="interleaved rounds, instead of 7 (3 with --quick)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--figures", type=Path, nargs="+", help="show these figures, written by --out, instead of measuring")
    parser.add_argument("--readme", type=Path, help="put the tables between the markers of this Markdown file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    amount = QUICK if options.quick else FULL
    if options.rounds is not None:
        amount = replace(amount, rounds=options.rounds)

    def write(figures: dict[str, Any]) -> None:
        if options.out is not None:
            part = options.out.with_name(options.out.name + ".part")
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(figures, indent=1) + "\n")
            part.replace(options.out)

    if options.figures is not None:
        figures = merged([json.loads(file.read_text()) for file in options.figures])
        write(figures)
    else:
        subjects = list(MEASUREMENTS) if options.subject == "all" else [options.subject]
        with single_threaded():
            figures = measure(subjects, torch.device(options.device), amount, write)
    sys.stdout.write(render(figures))
    if options.readme is not None:
        options.readme.write_text(insert_tables(options.readme.read_text(), figures))
    failed = failed_gates(figures)
    if failed:
        sys.stdout.write(f"{failed} rows were not timed: the arms differ\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
