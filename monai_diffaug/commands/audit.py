"""``monai-diffaug audit DIR``: faults of a finished run, and the withdrawal of a source."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from monai_diffaug.commands.arguments import WrongInputError, positive

__all__ = ["add_parser", "run"]

FAULTY = 1


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "audit",
        parents=[common],
        help="check a finished run: leaks, near-copies, labels, files; withdraw a source",
        description="Print the faults of a run, one per line, and the share of refused jobs. Exit code 0 without a fault, 1 with one. "
        "--withdraw lists the results that come from a source (as image or as lesion donor), and removes them with --delete.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of monai-diffaug generate")
    parser.add_argument("--data", type=Path, metavar="DATALIST", help="default the datalist of the run")
    parser.add_argument("--section", default="training", metavar="NAME", help="list of the datalist; default training")
    parser.add_argument("--export", type=Path, action="append", default=[], metavar="OUT", help="also check the splits of this export")
    parser.add_argument("--no-hashes", action="store_true", help="do not compare the content of files with the records")
    parser.add_argument("--no-copies", action="store_true", help="do not compare lesions with the real ones")
    parser.add_argument("--most", type=positive, default=100, metavar="N", help="faults to print of each kind; default 100")
    parser.add_argument("--withdraw", metavar="SOURCE_ID", help="id of a source or donor, or a group (patient)")
    parser.add_argument("--delete", action="store_true", help="with --withdraw: remove the results")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the faults or the descendants of a source; returns 0, or 1 if there are faults.

    Raises:
        WrongInputError: no run, an export that is none, or a run that is in use.
    """
    if options.delete and options.withdraw is None:
        raise WrongInputError("--delete removes the results of a withdrawn source; name it with --withdraw SOURCE_ID")
    try:
        return _audit(options) if options.withdraw is None else _withdraw(options)
    except (FileNotFoundError, ValueError) as error:
        raise WrongInputError(str(error)) from error


def _audit(options: argparse.Namespace) -> int:
    from monai_diffaug.generate.audit_run import audit_run

    audit = audit_run(
        options.folder,
        datalist=options.data,
        section=options.section,
        exports=options.export,
        hashes=not options.no_hashes,
        copies=not options.no_copies,
    )
    kinds = Counter(fault.kind for fault in audit.faults)
    printed: Counter[str] = Counter()
    for fault in audit.faults:
        printed[fault.kind] += 1
        if printed[fault.kind] <= options.most:
            print(f"{fault.kind}: {fault.where}: {fault.text}")
    for kind, number in kinds.items():
        if number > options.most:
            print(f"{kind}: {number - options.most} more")
    if not options.quiet:
        finished = audit.accepted + audit.filtered
        print(f"{finished} finished jobs: {audit.accepted} accepted, {audit.filtered} filtered ({audit.refused_share:.1%} refused)")
        for reason, number in list(audit.reasons.items())[:5]:
            print(f"  {number} filtered: {reason}")
        copies = audit.copies
        if copies.compared:
            print(
                f"{copies.compared} lesions compared with the real ones: {copies.by_design} near their own source or donor, "
                f"{len(copies.similar)} more similar to another one than 95 % of real lesions are"
            )
            for line in copies.similar[: options.most]:
                print(f"  similar: {line}")
        for note in (*audit.notes, *([f"near-copies: {copies.note}"] if copies.note else [])):
            print(f"note: {note}")
        summary = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        print(f"{len(audit.faults)} faults: {summary}" if audit.faults else "ok: no fault")
    return FAULTY if audit.faults else 0


def _withdraw(options: argparse.Namespace) -> int:
    from monai_diffaug.generate.audit_withdraw import delete_descendants, descendants_in_export, descendants_of
    from monai_diffaug.generate.report_page import REPORT_FILE, write_report
    from monai_diffaug.generate.run_folder import read_run
    from monai_diffaug.generate.run_lock import RunLockedError

    finished = read_run(options.folder)
    descendants = descendants_of(finished, options.withdraw)
    for descendant in descendants:
        print(f"{descendant.record.job} ({descendant.record.state}): {options.withdraw} is its {descendant.role}")
    for export in options.export:
        for case in descendants_in_export(export, descendants):
            print(f"{export} holds {case}; export again")
    if not options.delete:
        if not options.quiet:
            print(f"{len(descendants)} results come from {options.withdraw}; --delete removes them")
        return 0
    try:
        count = delete_descendants(finished, options.withdraw, descendants)
    except RunLockedError as error:
        raise WrongInputError(str(error)) from error
    if (options.folder / REPORT_FILE).is_file():
        write_report(read_run(options.folder))
    if not options.quiet:
        print(f"removed {count} results of {options.withdraw}")
        print("take it out of the datalist and the lesion banks too, else `generate` makes them again")
    return 0
