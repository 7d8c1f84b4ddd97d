"""``monai-diffaug info``: versions, devices, embedded models and their figures, missing extras; or the vocabulary of the prompts."""

from __future__ import annotations

import argparse
from typing import Any

from monai_diffaug.commands.arguments import WrongInputError

ALL_MODALITIES = ""
DEPENDENCIES = ("torch", "monai", "diffusers", "transformers", "segment-anything", "nibabel", "itk", "numpy")


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    info = commands.add_parser("info", parents=[common], help="versions, devices, embedded models, missing extras")
    info.add_argument(
        "--vocabulary", nargs="?", const=ALL_MODALITIES, metavar="MODALITY", help="list findings, anatomies and attributes of the prompts"
    )
    info.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    if options.vocabulary is not None:
        _print_vocabularies(options.vocabulary)
        return 0
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


def _print_vocabularies(modality: str) -> None:
    from monai_diffaug.prompts import VOCABULARIES, vocabulary_of

    try:
        tables = list(VOCABULARIES.values()) if modality == ALL_MODALITIES else [vocabulary_of(modality)]
    except ValueError as error:
        raise WrongInputError(f"--vocabulary: modality {modality!r} has no vocabulary; use one of {', '.join(VOCABULARIES)}") from error
    for table in tables:
        print(table.modality)
        for anatomy, findings in table.findings.items():
            print(f"  {anatomy}: {', '.join(findings)}")
        for axis, words in table.attributes.items():
            print(f"  ({axis}: {', '.join(words)})")


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
    for part in ("inpainter", "medsam", "validator", "controlnet", "semantic_controller", "latent_screen"):
        folder = tiny_folder(part)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
        print(f"  {part}: {f'{size:.1f} MB' if folder.is_dir() else 'missing'}")
    figures = tiny_folder("figures.json")
    if figures.is_file():
        for name, value in json.loads(figures.read_text(encoding="utf-8")).items():
            print(f"  {name}: {_rounded(value)}")


def _rounded(value: Any) -> str:
    """A figure with three digits, a table of figures on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_rounded(entry)}" for name, entry in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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
        missing = [name for name in sorted(_names(needed, extra)) if _version_of(name) is None]
        print(f"  {extra}: " + (f"missing {', '.join(missing)}: pip install monai_diffaug[{extra}]" if missing else "complete"))


def _names(needed: list[Any], extra: str) -> set[str]:
    """Packages that an extra installs; an extra that names this package stands for the extras that it lists."""
    names: set[str] = set()
    for requirement in needed:
        if not requirement.marker or not requirement.marker.evaluate({"extra": extra}) or requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name.replace("_", "-") == "monai-diffaug":
            names = names.union(*(_names(needed, other) for other in requirement.extras))
        else:
            names.add(requirement.name)
    return names
