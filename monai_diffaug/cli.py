"""The command ``monai-diffaug``: demo, augment, info. Exit code 2 and one line on stderr for wrong input."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["main"]

PLANES = ("axial", "coronal", "sagittal")
WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130
DEPENDENCIES = ("torch", "monai", "diffusers", "transformers", "segment-anything", "nibabel", "itk", "numpy")
MAX_SEED = 2**32 - 1


class WrongInputError(ValueError):
    """The command line or a file it names is wrong."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongInputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for wrong input, 1 when a file cannot be written, 130 after Ctrl-C."""
    parser = _build_parser()
    try:
        options = parser.parse_args(argv)
        level = logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        run = options.run
        return int(run(options))
    except KeyboardInterrupt:
        return _fail("interrupted; no unfinished file is left", INTERRUPTED)
    except WrongInputError as error:
        return _fail(str(error), WRONG_INPUT)
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """One line for what the user can mend; anything else is a defect and keeps its traceback."""
    from monai_diffaug.errors import GridMismatchError, MissingExtraError, ModelSourceError
    from monai_diffaug.imageio import ImageFileError

    if isinstance(error, (GridMismatchError, MissingExtraError, ModelSourceError, ImageFileError)):
        return _fail(str(error), WRONG_INPUT)
    if isinstance(error, OSError):
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

    demo = commands.add_parser("demo", parents=[common], help="edit two real images that ship inside dependencies")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    demo.add_argument("--seed", type=_seed, default=0, metavar="N")
    demo.set_defaults(run=_demo)

    augment = commands.add_parser(
        "augment",
        parents=[common],
        help="edit one image",
        description="Edit IMAGE inside a mask and write it on its own grid, with its type and header. "
        "JPEG results are written as PNG (JPEG would change voxels outside), a DICOM series as .nii.gz.",
    )
    augment.add_argument("image", type=Path, metavar="IMAGE", help=".nii[.gz], .mha, .nrrd, .png, .jpg or a DICOM folder")
    where = augment.add_mutually_exclusive_group(required=True)
    where.add_argument("--label", type=Path, metavar="FILE", help="its boxes are outlined by MedSAM, and the edit is painted in")
    where.add_argument("--mask", type=Path, metavar="FILE", help="repainted as it is: non-zero voxels")
    where.add_argument(
        "--box",
        type=_box,
        metavar="X0,Y0,X1,Y1",
        help="outlined by MedSAM; pixels from the left and the top of the picture, or of every slice as a radiologist sees it",
    )
    augment.add_argument("--prompt", required=True, metavar="TEXT", help='e.g. "MRI of brain, glioma, irregular"')
    augment.add_argument("--out", type=Path, required=True, metavar="DIR")
    augment.add_argument("--model", default="tiny", metavar="SOURCE", help="tiny, a diffusers folder or org/name@revision")
    augment.add_argument("--medsam", default="tiny", metavar="SOURCE", help="tiny, a .pth file or org/name@revision")
    augment.add_argument("--window", type=_window, metavar="LO,HI", help="intensities the models see, e.g. --window=-160,240")
    augment.add_argument("--plane", default="axial", metavar="PLANE", help=f"{', '.join(PLANES)}; default axial")
    augment.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the first result; each further one adds 1")
    augment.add_argument("--n", type=_positive, default=1, metavar="K", help="number of results")
    augment.add_argument("--steps", type=_positive, default=12, metavar="N")
    augment.add_argument("--guidance", type=_finite, default=3.0, metavar="G")
    augment.add_argument("--strength", type=_strength, default=1.0, metavar="S", help="in (0, 1]")
    augment.add_argument(
        "--label-value", type=int, metavar="V", help="label voxels that give the box, and the value painted; default any, paints 1"
    )
    augment.add_argument("--validate", action="store_true", help="score the result with the embedded validator")
    augment.set_defaults(run=_augment)

    info = commands.add_parser("info", parents=[common], help="versions, devices, embedded models, missing extras")
    info.set_defaults(run=_info)
    return parser


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise argparse.ArgumentTypeError(f"{text!r} is not finite")
    return value


def _numbers(text: str, names: str) -> list[float]:
    parts = text.split(",")
    if len(parts) != len(names.split(",")):
        raise argparse.ArgumentTypeError(f"expected {names}, got {text!r}")
    return [_finite(part) for part in parts]


def _box(text: str) -> tuple[float, ...]:
    x0, y0, x1, y1 = _numbers(text, "X0,Y0,X1,Y1")
    if not (x0 < x1 and y0 < y1):
        raise argparse.ArgumentTypeError(f"a box needs X0 < X1 and Y0 < Y1, got {text}")
    return x0, y0, x1, y1


def _window(text: str) -> tuple[float, float]:
    low, high = _numbers(text, "LO,HI")
    if not low < high:
        raise argparse.ArgumentTypeError(f"a window needs LO < HI, got {text}")
    return low, high


def _whole(text: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"must be in {least} to {most}, got {value}")
    return value


def _positive(text: str) -> int:
    return _whole(text, 1, 100_000)


def _seed(text: str) -> int:
    return _whole(text, 0, MAX_SEED)


def _strength(text: str) -> float:
    value = _finite(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text}")
    return value


def _shows_progress(options: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not options.quiet


def _check_out(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise WrongInputError(f"--out {folder} is a file; give a folder")


def _demo(options: argparse.Namespace) -> int:
    _check_out(options.out)
    from monai_diffaug.demo import run_demo, table_of

    rows = run_demo(options.out, seed=options.seed, progress=_shows_progress(options))
    if not options.quiet:
        print(table_of(rows))
        print(f"written to {options.out}")
    return 0


def _augment(options: argparse.Namespace) -> int:
    _check_out(options.out)
    if options.plane not in PLANES:
        raise WrongInputError(f"unknown plane {options.plane!r}; use {', '.join(PLANES)}")
    if options.seed + options.n - 1 > MAX_SEED:
        raise WrongInputError(f"--seed {options.seed} with --n {options.n} goes beyond {MAX_SEED}")
    if not options.prompt.strip():
        raise WrongInputError("--prompt is empty; say what shall be painted")

    import numpy as np

    from monai_diffaug.augment import (
        EditSettings,
        check_model_source,
        edit_picture,
        outline,
        settings_as_json,
        slice_size,
        write_edit,
    )
    from monai_diffaug.imageio import read_picture, require_same_grid, stem_of

    image = read_picture(options.image)
    region = label = None
    if options.mask or options.label:
        role = "mask" if options.mask else "label"
        region = read_picture(options.mask or options.label)
        require_same_grid(image, region, role)
        # a colour picture of a mask counts where any channel is set
        ids = region.values.max(axis=0, keepdims=True)
        chosen = ids == options.label_value if options.label and options.label_value is not None else ids != 0
        if not chosen.any():
            wanted = "non-zero voxels" if options.label_value is None or options.mask else f"voxels of value {options.label_value}"
            raise WrongInputError(f"{role} {region.path} is empty: it has no {wanted}")
        if options.label:
            if region.stored.shape[0] > 1:
                raise WrongInputError(f"label {region.path} is a colour picture; give one value a voxel")
            label = ids.astype(np.int32)
    else:
        height, width = slice_size(image, options.plane)
        x0, y0, x1, y1 = options.box
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise WrongInputError(f"box {x0:g},{y0:g},{x1:g},{y1:g} is outside the image: X runs 0 to {width}, Y 0 to {height}")
    check_model_source("inpainter", options.model)
    if not options.mask:
        check_model_source("medsam", options.medsam)
    if options.validate:
        check_model_source("validator", "tiny")

    settings = EditSettings(
        prompt=options.prompt,
        model=options.model,
        medsam=options.medsam,
        window=options.window,
        plane=options.plane,
        steps=options.steps,
        guidance=options.guidance,
        strength=options.strength,
        label_value=1 if options.label_value is None else options.label_value,
        validate=options.validate,
    )
    if options.mask:
        mask = chosen.astype(np.uint8)
    else:
        mask = outline(image, settings, label=label, label_value=options.label_value, box=options.box)
        if not mask.any():
            given = "--label" if options.label else "--box"
            raise WrongInputError(
                f"MedSAM finds nothing it trusts (predicted IoU >= 0.5) in the boxes of {given}; give another box, or the mask by --mask"
            )

    from tqdm import tqdm

    for k in tqdm(range(options.n), desc="augment", disable=not _shows_progress(options)):
        seed = options.seed + k
        result = edit_picture(image, mask, settings, seed=seed, label=label)
        name = f"{stem_of(options.image)}_diffaug" + (f"_{k}" if options.n > 1 else "")
        details = _details(options, settings_as_json(settings), seed)
        written = write_edit(options.out, name, image, result, details, region if options.label else None)
        if not result.record["applied"]:
            logging.getLogger(__name__).warning("%s: left unchanged, %s", name, result.record["reason"])
        if not options.quiet:
            print(written[0])
    return 0


def _details(options: argparse.Namespace, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    from monai_diffaug.version import __version__

    files = {name: str(getattr(options, name)) for name in ("image", "label", "mask") if getattr(options, name)}
    return {"input": files, "box": options.box, "settings": settings, "seed": seed, "monai_diffaug": __version__}


def _info(options: argparse.Namespace) -> int:
    import platform

    import torch

    from monai_diffaug.version import __version__

    print(f"monai_diffaug {__version__}, Python {platform.python_version()}")
    for name in DEPENDENCIES:
        print(f"  {name} {_version_of(name) or 'missing'}")
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    print(f"devices: {', '.join(devices)}")
    _print_models()
    _print_extras()
    return 0


def _version_of(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _print_models() -> None:
    import json

    from monai_diffaug.models.registry import tiny_folder

    print("embedded models:")
    for part in ("inpainter", "medsam", "validator"):
        folder = tiny_folder(part)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
        print(f"  {part}: {f'{size:.1f} MB' if folder.is_dir() else 'missing'}")
    figures = tiny_folder("figures.json")
    if figures.is_file():
        for name, value in json.loads(figures.read_text(encoding="utf-8")).items():
            print(f"  {name}: {value if not isinstance(value, dict) else json.dumps(value)}")


def _print_extras() -> None:
    from importlib.metadata import PackageNotFoundError, metadata, requires

    from packaging.requirements import Requirement

    try:
        extras = metadata("monai_diffaug").get_all("Provides-Extra") or []
        needed = [Requirement(text) for text in requires("monai_diffaug") or []]
    except PackageNotFoundError:
        print("extras: unknown, monai_diffaug is not installed by pip")
        return
    print("extras:")
    for extra in extras:
        names = [r.name for r in needed if r.marker and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})]
        missing = [n for n in names if n.replace("_", "-") != "monai-diffaug" and _version_of(n) is None]
        print(f"  {extra}: " + (f"missing {', '.join(missing)}: pip install monai_diffaug[{extra}]" if missing else "complete"))
