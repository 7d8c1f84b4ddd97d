"""``monai-diffaug lesion-bank DATALIST --out FILE``: the training lesions, to be transplanted, and for a guard against copies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_diffaug.commands.arguments import PLANES, WrongInputError, check_place, window

__all__ = ["add_parser", "run"]


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "lesion-bank",
        parents=[common],
        help="collect training lesions, to transplant them, and so that painted copies of them are refused",
        description="Write the lesions of a MONAI datalist to FILE. TransplantLesiond(bank=FILE) puts them into other images; "
        "LatentValidated(novelty=FILE) refuses painted lesions that repeat one of them. Images are read with LoadImaged; entries without a "
        "label are left out, and with --group-key those whose group is also in the list that is held out.",
    )
    parser.add_argument("data", type=Path, metavar="DATALIST", help='JSON: {"training": [{"image": ..., "label": ...}]}')
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the bank, .npz")
    parser.add_argument("--section", default="training", metavar="NAME", help="list of the datalist; default training")
    parser.add_argument("--label-value", type=int, metavar="N", help="class id of a lesion; default all above 0")
    parser.add_argument("--group-key", metavar="KEY", help='key of the entries that near-duplicates share, e.g. "patient"')
    parser.add_argument("--plane", choices=PLANES, default="axial", help="plane of the slices of volumes")
    parser.add_argument("--window", type=window, metavar="LO,HI", help="clip intensities, as window= of the painting transform does")
    parser.add_argument("--held-out", default="validation", metavar="NAME", help="list whose groups give no lesion; default validation")
    parser.add_argument(
        "--upright", action="store_true", help="read pictures rows first, as augment does; default columns first, as LoadImaged does"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the bank; returns 0.

    Raises:
        WrongInputError: no such datalist or section, no lesions in it, an entry that cannot be read, or --out cannot be written.
    """
    if options.out.is_dir():
        raise WrongInputError(f"--out {options.out} is a folder; name a file in it, e.g. {options.out / 'bank.npz'}")
    check_place(options.out)
    from monai_diffaug.data.donor_bank import DonorBank, require_replaceable
    from monai_diffaug.data.lesion_bank import LesionBank

    lesions = {key: getattr(options, key) for key in ("section", "label_value", "group_key", "plane")}
    try:
        require_replaceable(options.out)
        patterns = LesionBank.from_datalist(options.data, window=options.window, **lesions)
        donors = DonorBank.from_datalist(options.data, held_out=options.held_out, upright=options.upright, **lesions)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise WrongInputError(str(error.args[0] if error.args else error)) from error
    donors.save(options.out, patterns=patterns)
    if not options.quiet:
        views = f"{len(patterns.patterns)} views of the lesions of {len(patterns)} images"
        print(f"{options.out}: {len(donors)} lesions to transplant; {views}")
    return 0
