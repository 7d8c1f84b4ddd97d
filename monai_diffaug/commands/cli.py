"""The command ``monai-diffaug``. Exit code 2 and one line on stderr for wrong input."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from monai_diffaug.commands import audit, augment, bundle, demo, evaluate, export, generate, info, train, write_report
from monai_diffaug.commands import build_lesion_bank as lesion_bank
from monai_diffaug.commands.arguments import WrongInputError
from monai_diffaug.files.stop_signal import sigterm_ends

__all__ = ["main"]

WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130
COMMANDS = (demo, augment, generate, export, audit, write_report, train, evaluate, lesion_bank, bundle, info)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("argument --") and message.endswith("expected one argument"):  # argparse takes -160 for an option
            message += "; join a negative value with an equals sign, e.g. --window=-160,240"
        raise WrongInputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for wrong input, 1 when a file cannot be written, 130 after Ctrl-C, 143 after SIGTERM."""
    parser = _build_parser()
    try:
        options = parser.parse_args(argv)
        level = logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        run = options.run
        with sigterm_ends():
            return int(run(options))
    except KeyboardInterrupt:
        return _fail("interrupted; no unfinished file is left", INTERRUPTED)
    except WrongInputError as error:
        return _fail(str(error), WRONG_INPUT)
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """One line for what the user can mend; anything else is a defect and keeps its traceback."""
    from safetensors import SafetensorError

    from monai_diffaug.errors import GridMismatchError, MissingExtraError, ModelSourceError
    from monai_diffaug.files.picture import ImageFileError

    if isinstance(error, (GridMismatchError, MissingExtraError, ModelSourceError, ImageFileError)):
        return _fail(str(error), WRONG_INPUT)
    if isinstance(error, (OSError, SafetensorError)):  # a full disk is the latter while weights are written
        return _fail(str(error), FAILED)
    raise error


def _fail(message: str, code: int) -> int:
    print(f"monai-diffaug: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="monai-diffaug", description="Edit medical images locally: a mask says where, a prompt says what.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = _Parser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    common.add_argument("-q", "--quiet", action="store_true", help="no progress bars, only errors")
    for command in COMMANDS:
        command.add_parser(commands, common)
    return parser
