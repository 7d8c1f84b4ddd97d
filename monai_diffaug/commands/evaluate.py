"""``monai-diffaug evaluate STUDY --data DATALIST``: run one of the package's studies and print its table."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any

__all__ = ["STUDIES", "add_parser", "run"]

# name -> (module, what it measures)
STUDIES = {
    "embedded": ("monai_diffaug.studies.embedded_goals", "the embedded models against their goals"),
    "local-noise": ("monai_diffaug.studies.local_noise", "similarity inside and outside the mask against the noise scale"),
    "seam": ("monai_diffaug.studies.seam", "the jump across the mask's boundary, soft against hard"),
    "texture": ("monai_diffaug.studies.texture", "the texture of painted lesions against that of the real ones they replace"),
    "edges": ("monai_diffaug.studies.edge_control", "how well a ControlNet's edges are obeyed"),
    "prompts": ("monai_diffaug.studies.prompt_obedience", "whether the findings of the prompts are what is painted"),
    "validator": ("monai_diffaug.studies.acceptance", "what the validator accepts of good and of deliberately bad samples"),
    "judge": ("monai_diffaug.studies.judge", "validators on real lesions and on fakes: Dice, false alarms, acceptance by modality"),
    "semantic": ("monai_diffaug.studies.semantic_features", "what the semantic controller predicts, and repainting with and without it"),
    "erase": ("monai_diffaug.studies.erased_lesions", "whether erased lesions are gone, for the validator"),
    "distribution": ("monai_diffaug.studies.distribution", "KID and FID of painted to real lesions"),
    "memorisation": ("monai_diffaug.studies.memorisation", "the training lesion nearest to each painted one; the guard against copies"),
    "latent-screen": ("monai_diffaug.studies.screen_savings", "what refusing candidates by their latents saves, and what it costs"),
    "continuity": ("monai_diffaug.studies.continuity", "slice-to-slice jumps in repainted volumes"),
    "transplant": ("monai_diffaug.studies.transplanted", "transplants by strength and blending: seam, likeness to the donor, acceptance"),
    "speed": ("monai_diffaug.studies.speed.speed_command", "speed and memory against diffusers' pipelines and the bare forward passes"),
    "downstream": ("monai_diffaug.studies.downstream", "does it help: the same network trained with and without"),
}


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    table = "; ".join(f"{name}: {text}" for name, (_, text) in STUDIES.items())
    evaluate = commands.add_parser(
        "evaluate",
        help="run a study and print its table",
        description=f"Run a study on a MONAI datalist. {table}. Options after STUDY are its own: monai-diffaug evaluate seam --help",
    )
    evaluate.add_argument("study", choices=tuple(STUDIES), metavar="STUDY", help=", ".join(STUDIES))
    evaluate.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="options of the study")
    evaluate.set_defaults(run=run, verbose=False, quiet=False)


def run(options: argparse.Namespace) -> int:
    """Run the study; returns its exit code."""
    module, _ = STUDIES[options.study]
    program = sys.argv
    sys.argv = [f"monai-diffaug evaluate {options.study}"]  # the name that the study's messages begin with
    try:
        return int(import_module(module).main(options.arguments))
    except SystemExit as stop:  # argparse: help, or a wrong option
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = program
