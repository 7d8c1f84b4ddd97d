"""``monai-diffaug export DIR --format FORMAT --out OUT``: a finished run as a data set of a training framework."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_diffaug.commands.arguments import WrongInputError, check_out, whole

__all__ = ["add_parser", "run"]

FORMATS = ("nnunet", "decathlon", "monai", "bids", "webdataset")
MOST_FOLDS = 100


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "export",
        parents=[common],
        help="write a finished run as nnU-Net, Decathlon, MONAI, BIDS or WebDataset data",
        description="Write the accepted results of a run and the real cases of its datalist as a data set with folds. Real cases alone "
        "validate; a synthetic case trains in a fold only where its source and its lesion donor train. The folds are those of the "
        "datalist ('fold' of its entries, or its list 'validation'), else whole groups are spread over --folds. OUT appears whole or not "
        "at all; only an earlier export there is replaced.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of monai-diffaug generate")
    parser.add_argument("--format", required=True, choices=FORMATS, help="bids holds the synthetic cases only")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="nnunet: .../DatasetNNN_Name; decathlon: .../TaskNN_Name")
    parser.add_argument("--data", type=Path, metavar="DATALIST", help="the real cases; default the datalist of the run")
    parser.add_argument("--section", default="training", metavar="NAME", help="list of the datalist; default training")
    parser.add_argument("--folds", type=_folds, default=5, metavar="K", help="folds if the datalist has none, 2 to 100; default 5")
    parser.add_argument("--ignore-label", type=int, metavar="ID", help="class id that training leaves out (nnunet, decathlon)")
    parser.add_argument("--keep-ids", action="store_true", help="refuse class ids with gaps; default renumbers them (nnunet, decathlon)")
    parser.add_argument("--channels", type=_names, default=(), metavar="A,B", help="names of the channels (nnunet, decathlon)")
    parser.add_argument("--suffix", default="", metavar="NAME", help="contrast of MRI as BIDS names it, e.g. T2w (bids)")
    parser.set_defaults(run=run)


def _folds(text: str) -> int:
    return whole(text, 2, MOST_FOLDS)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def run(options: argparse.Namespace) -> int:
    """Write the export; returns 0.

    Raises:
        WrongInputError: no run, nothing accepted, or cases that do not fit the format.
    """
    check_out(options.out)
    from monai_diffaug.generate.export_run import export_run

    try:
        exported = export_run(
            options.folder,
            options.format,
            options.out,
            datalist=options.data,
            section=options.section,
            folds=options.folds,
            ignore=options.ignore_label,
            keep_ids=options.keep_ids,
            channels=options.channels,
            suffix=options.suffix,
        )
    except (FileNotFoundError, ValueError) as error:
        raise WrongInputError(str(error)) from error
    if options.quiet:
        return 0
    print(f"{options.out}: {exported.real} real and {exported.synthetic} synthetic cases, {exported.folds} fold(s)")
    classes = exported.classes
    print("classes: " + ", ".join(f"{classes.new_id[old]} {classes.names[classes.new_id[old]]}" for old in classes.new_id))
    if options.format in ("nnunet", "decathlon") and not classes.is_identity:
        changed = ", ".join(f"{old} -> {new}" for old, new in classes.new_id.items() if old != new)
        print(f"class ids renumbered without gaps: {changed}")
    for name, number in exported.written.items():
        print(f"{name}: {number}")
    if exported.without_label:
        print(f"left out: {exported.without_label} real cases without a label")
    if exported.never_training:
        number, example = len(exported.never_training), exported.never_training[0]
        print(f"in the training of no fold: {number} synthetic cases, e.g. {example}: no fold trains its source and donor")
    return 0
