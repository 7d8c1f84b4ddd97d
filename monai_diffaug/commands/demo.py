"""``monai-diffaug demo``: edit two real images that ship inside dependencies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_diffaug.commands.arguments import check_out, seed, shows_progress


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    demo = commands.add_parser("demo", parents=[common], help="edit two real images that ship inside dependencies")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    demo.add_argument("--seed", type=seed, default=0, metavar="N")
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    check_out(options.out)
    from monai_diffaug.commands.demo_cases import run_demo, table_of

    rows = run_demo(options.out, seed=options.seed, progress=shows_progress(options))
    if not options.quiet:
        print(table_of(rows))
        print(f"written to {options.out}")
    return 0
