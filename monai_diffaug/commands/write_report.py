"""``monai-diffaug report DIR``: write the page of a run again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_diffaug.commands.arguments import WrongInputError, check_place, finite, whole

__all__ = ["add_parser", "run"]

SMALLEST_PANEL_PX, LARGEST_PANEL_PX = 32, 512


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "report",
        parents=[common],
        help="write the HTML page of a run: counts, histograms, gallery",
        description="Write one HTML page with the counts, histograms and pictures of a run. It opens from disk, without a network.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of monai-diffaug generate")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default DIR/report.html")
    parser.add_argument(
        "--per-group", type=_count, default=40, metavar="N", help="most results of each group (accepted, borderline, filtered); default 40"
    )
    parser.add_argument("--panel-px", type=_panel, default=128, metavar="N", help="side of a picture, 32 to 512; default 128")
    parser.add_argument("--zoom", type=finite, metavar="Z", help="show a square of Z sides of the mask; default whole slices")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    return whole(text, 1, 10_000)


def _panel(text: str) -> int:
    return whole(text, SMALLEST_PANEL_PX, LARGEST_PANEL_PX)


def run(options: argparse.Namespace) -> int:
    """Write the page; returns 0.

    Raises:
        WrongInputError: no run, a damaged record, --zoom below 1, or --out cannot be written.
    """
    if options.zoom is not None and options.zoom < 1:
        raise WrongInputError(f"--zoom must be at least 1, got {options.zoom:g}")
    if options.out is not None:
        if options.out.is_dir():
            raise WrongInputError(f"--out {options.out} is a folder; name a file, e.g. {options.out / 'report.html'}")
        check_place(options.out)
    from monai_diffaug.generate.report_page import write_report
    from monai_diffaug.generate.run_folder import read_run

    try:
        run_in_memory = read_run(options.folder)
    except (FileNotFoundError, ValueError) as error:
        raise WrongInputError(str(error)) from error
    file = write_report(run_in_memory, options.out, per_group=options.per_group, panel_px=options.panel_px, zoom=options.zoom)
    if not options.quiet:
        print(f"{file}: {len(run_in_memory.records)} jobs, {file.stat().st_size / 1e6:.1f} MB")
    return 0
