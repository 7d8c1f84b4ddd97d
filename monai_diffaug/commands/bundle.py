"""``monai-diffaug bundle check FILE`` and ``bundle copy NAME DIR``: MONAI Bundles that use this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_diffaug.commands.arguments import WrongInputError

__all__ = ["add_parser", "run_check", "run_copy"]

FAULTY = 2


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    bundle = commands.add_parser("bundle", help="check the config of a MONAI Bundle, or copy one to start from")
    actions = bundle.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        parents=[common],
        help="print one line per fault in a config",
        description="Check a config without running it. Exit code 0 and 'ok: N components', or 2 and one line per fault. Classes are "
        "looked up in monai, torch, monai_diffaug, numpy and ignite; expressions are parsed, nothing of the config is run.",
    )
    check.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".yaml or .json; each overrides those before it")
    check.add_argument(
        "--make",
        action="store_true",
        help="construct MONAI's transforms too: runs imports and simple expressions of the config; only for configs that you would run",
    )
    check.set_defaults(run=run_check)
    copy = actions.add_parser("copy", parents=[common], help="copy a bundle of this package into a new folder")
    copy.add_argument("name", metavar="NAME", help="e.g. local_augmentation")
    copy.add_argument("folder", type=Path, metavar="DIR", help="new folder")
    copy.set_defaults(run=run_copy)


def run_check(options: argparse.Namespace) -> int:
    """Print the faults; returns 0 or 2."""
    from monai_diffaug.bundles.check_config import check_bundle

    report = check_bundle(options.files, make=options.make)
    for fault in report.faults:
        print(fault)
    for note in () if options.quiet else report.notes:
        print(f"note: {note}")
    if report.faults:
        return FAULTY
    if not options.quiet:
        print(f"ok: {report.components} components")
    return 0


def run_copy(options: argparse.Namespace) -> int:
    """Copy a bundle; returns 0.

    Raises:
        WrongInputError: unknown name, or the folder exists already.
    """
    from monai_diffaug.bundles.folders import copy_bundle

    try:
        folder = copy_bundle(options.name, options.folder)
    except (ValueError, FileExistsError) as error:
        raise WrongInputError(str(error)) from error
    if not options.quiet:
        print(folder)
    return 0
