"""Measure: ``monai-diffaug evaluate speed [inpainting|profile|medsam|training-step|scaling|quality|all] [--quick] [--out FILE]``.

Prints tables. ``--out`` writes the figures and a description of the machine as JSON; ``--figures FILE ... --readme PAGE.md`` puts the
tables of such files into a Markdown page. ``quality`` needs ``--data``; without it, ``all`` skips that part with a warning. On a CPU,
CPU time of one thread is measured. Exits with 1 if results differ that must be equal: their speed is not reported then.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.studies.speed.inpainting_speed import measure_inpainting, measure_scheduler_step
from monai_diffaug.studies.speed.machine import describe_machine
from monai_diffaug.studies.speed.medsam_speed import measure_medsam
from monai_diffaug.studies.speed.operator_profile import measure_profile
from monai_diffaug.studies.speed.quality_cost import measure_quality
from monai_diffaug.studies.speed.scaling import measure_scaling
from monai_diffaug.studies.speed.speed_table import insert_tables, render
from monai_diffaug.studies.speed.time_and_memory import single_threaded
from monai_diffaug.studies.speed.timed_edits import FULL, QUICK, Amount
from monai_diffaug.studies.speed.training_step import measure_training_step
from monai_diffaug.studies.study_images import StudyData, StudyInputError
from monai_diffaug.version import __version__

__all__ = ["main", "measure"]

logger = logging.getLogger(__name__)

Measurement = Callable[[torch.device, Amount], Any]
MEASUREMENTS: Mapping[str, Mapping[str, Measurement]] = {
    "inpainting": {"scheduler_step": measure_scheduler_step, "inpainting": measure_inpainting},
    "profile": {"profile": measure_profile},
    "medsam": {"medsam": measure_medsam},
    "training-step": {"training_step": measure_training_step},
    "scaling": {"scaling": measure_scaling},
}
QUALITY = "quality"  # needs a datalist; the other subjects need no data


def measure(
    subjects: Sequence[str], device: torch.device, amount: Amount, after: Callable[[dict[str, Any]], None], data: StudyData | None = None
) -> dict[str, Any]:
    """Figures of some subjects and the description of the machine.

    ``after`` gets all figures so far after each measurement, so that an interrupted run is not lost. "quality" needs ``data``.
    """
    figures: dict[str, Any] = {
        "version": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "device": device.type,
        "machine": describe_machine(),
        "amount": asdict(amount),
    }
    quality: Mapping[str, Measurement] = {} if data is None else {QUALITY: partial(measure_quality, data)}
    for subject in subjects:
        if subject == QUALITY and data is None:
            logger.warning("quality is skipped: it needs --data DATALIST.json, a MONAI datalist with labelled lesions")
        for name, run in {**MEASUREMENTS, QUALITY: quality}[subject].items():
            logger.info("%s", name)
            figures[name] = run(device, amount)
            after(figures)
    return figures


def merged(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of several runs, e.g. one per subject, as those of one run.

    Raises:
        ValueError: another machine, version or amount of measurements.
    """
    for name in ("version", "device", "machine", "amount"):
        if any(run[name] != runs[0][name] for run in runs):
            raise ValueError(f"the runs differ in {name}: figures of one table must be of one machine, version and amount")
    return {name: value for run in runs for name, value in run.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status.

    Raises:
        StudyInputError: "quality" without ``--data``, or a datalist that cannot be used.
    """
    parser = argparse.ArgumentParser(prog="monai-diffaug evaluate speed", description=__doc__)
    parser.add_argument("subject", nargs="?", default="all", choices=[*MEASUREMENTS, QUALITY, "all"])
    parser.add_argument("--data", type=Path, metavar="DATALIST", help="MONAI datalist with lesions in its validation list, for quality")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="data set of the datalist")
    parser.add_argument("--quick", action="store_true", help="few rounds, small slices and the embedded models only: minutes")
    parser.add_argument("--rounds", type=int, help="interleaved rounds, instead of 7 (3 with --quick)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--figures", type=Path, nargs="+", help="print these figures, written by --out, instead of measuring")
    parser.add_argument("--readme", type=Path, metavar="PAGE", help="put the tables between the markers of this Markdown page")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    amount = QUICK if options.quick else FULL
    amount = amount if options.rounds is None else replace(amount, rounds=options.rounds)

    def write(figures: dict[str, Any]) -> None:
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(options.out) as part:
                part.write_text(json.dumps(figures, indent=1) + "\n")

    if options.figures is not None:
        figures = merged([json.loads(file.read_text()) for file in options.figures])
        write(figures)
    elif options.subject == QUALITY and options.data is None:
        raise StudyInputError("evaluate speed quality needs --data DATALIST.json, a MONAI datalist with labelled lesions")
    else:
        subjects = [*MEASUREMENTS, QUALITY] if options.subject == "all" else [options.subject]
        data = None if options.data is None else StudyData.open(options.data, options.dataset, preferred=("breast_ultrasound",))
        with single_threaded():
            figures = measure(subjects, torch.device(options.device), amount, write, data)
    sys.stdout.write(render(figures))
    if options.readme is not None:
        options.readme.write_text(insert_tables(options.readme.read_text(), figures))
    rows = [*figures.get("inpainting", {}).get("edits", []), *figures.get("medsam", {}).get("masks", [])]
    failed = sum(not row["passed"] for row in rows)
    if failed:
        sys.stdout.write(f"{failed} rows were not timed: the results differ\n")
    return 1 if failed else 0
