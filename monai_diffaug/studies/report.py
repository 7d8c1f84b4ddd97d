"""The command line of the studies: options that all have, the printed table, and figures as one JSON file."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.geometry.slices import PLANES
from monai_diffaug.studies.study_images import StudyData, StudyInputError

__all__ = ["run_study", "study_parser", "write_json", "write_text"]

Study = Callable[[argparse.Namespace, StudyData], tuple[str, Mapping[str, Any] | None]]
"""From options and data to the printed text and the figures for ``--out``; None where the study writes its files itself."""


def study_parser(
    description: str | None,
    *,
    model: str | None = "inpainter",
    repaints: bool = True,
    seed: bool = True,
    guidance_scale: float | None = None,
    out: str = "write the figures as JSON",
) -> argparse.ArgumentParser:
    """A parser with the options of all studies.

    ``model`` is what ``--model`` names (None leaves it out), ``repaints`` adds the sampler's options, ``out`` is the help of ``--out``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DATALIST", help="MONAI datalist (JSON) with a training and a validation list")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help='data sets to use, by the "dataset" of the entries')
    parser.add_argument("--plane", choices=PLANES, default="axial", help="in which volumes are sliced")
    parser.add_argument("--window", type=_window, metavar="LO,HI", help="intensities that are shown, e.g. -160,240; default percentiles")
    if model is not None:
        parser.add_argument("--model", default="tiny", metavar="SOURCE", help=f"source of the {model}; default tiny, the embedded one")
    if repaints:
        parser.add_argument("--num-inference-steps", type=int, default=12, metavar="N")
        given = "by the model" if guidance_scale is None else f"{guidance_scale:g}"
        parser.add_argument("--guidance-scale", type=float, default=guidance_scale, metavar="X", help=f"default {given}")
    if seed:
        parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path, metavar="PATH", help=out)
    return parser


def run_study(
    parser: argparse.ArgumentParser,
    study: Study,
    arguments: Sequence[str] | None,
    *,
    needs: str,
    preferred: Sequence[str] = (),
    with_settings: bool = True,
) -> int:
    """Run a study: print its text, write its figures (with the options, or without), return the exit code 0.

    Args:
        parser, study, arguments: from ``study_parser``, the study, and its command line.
        needs: the images that the study needs, in words.
        preferred: data sets that are used, where the datalist has them and ``--dataset`` names none.

    Raises:
        StudyInputError: there is no ``--data``, or it lacks what the study needs.
    """
    options = parser.parse_args(arguments)
    if options.data is None:
        raise StudyInputError(f"{parser.prog} needs --data DATALIST.json, a MONAI datalist with {needs}")
    logging.getLogger("monai_diffaug.studies").setLevel(logging.INFO)
    data = StudyData.open(options.data, options.dataset, preferred=preferred, plane=options.plane, window=options.window)
    text, figures = study(options, data)
    sys.stdout.write(text + "\n")
    if options.out is not None and figures is not None:
        write_json({**({"settings": vars(options)} if with_settings else {}), **figures}, options.out)
    return 0


def write_json(figures: Any, file: Path) -> None:
    """Write figures, with arrays and data classes among them, whole or not at all; folders are made."""
    write_text(json.dumps(figures, indent=2, default=_plain) + "\n", file)


def write_text(text: str, file: Path) -> None:
    """Write ``text`` to ``file``, whole or not at all; folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part:
        part.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _window(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise argparse.ArgumentTypeError(f"must be LO,HI with LO < HI, got {text!r}")
    return low, high
