"""``monai-diffaug train RECIPE``: fine-tune a model on the user's own images."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from monai_diffaug.commands.arguments import (
    PLANES,
    WrongInputError,
    check_device,
    check_out,
    finite,
    positive,
    seed,
    shows_progress,
    whole,
    window,
)

__all__ = ["RECIPES", "add_parser", "run"]

# Name -> (class with the interface of monai_diffaug.training.loop.Trainee, what it does). A further recipe is one line.
RECIPES: dict[str, tuple[str, str]] = {
    "inpaint": ("monai_diffaug.training.recipes.inpaint_recipe:InpaintRecipe", "the model that repaints lesions"),
    "controlnet": (
        "monai_diffaug.training.recipes.controlnet_recipe:ControlNetRecipe",
        "a network that keeps edges, next to the frozen --model",
    ),
    "validator": ("monai_diffaug.training.recipes.validator_recipe:ValidatorRecipe", "the network that checks what was painted"),
    "medsam": ("monai_diffaug.training.recipes.medsam_recipe:MedSAMRecipe", "the outlines of lesions in boxes"),
    "semantic-controller": (
        "monai_diffaug.training.recipes.semantic_controller_recipe:SemanticControllerRecipe",
        "a network that predicts what the mask hides, beside the frozen --model",
    ),
}
DEFAULT_MINUTES = 10.0
MOST_PICTURES = 1000


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand.

    Args:
        commands: what ``add_subparsers`` returned.
        common: parser of the options that all commands share.
    """
    table = "; ".join(f"{name}: {text}" for name, (_, text) in RECIPES.items())
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="fine-tune a model on your own images",
        description=f"Fine-tune a model on the images and labels of a MONAI datalist. Recipes: {table}. "
        "DIR becomes a folder that model= (controlnet=, semantic_controller=) takes; the same command goes on with a run that was stopped. "
        "torchrun --nproc_per_node N -m monai_diffaug train ... trains on N GPUs or processes.",
    )
    parser.add_argument("recipe", choices=tuple(RECIPES), metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--data", type=Path, required=True, metavar="DATALIST", help='JSON: {"training": [{"image": ..., "label": ...}]}')
    parser.add_argument("--model", default="tiny", metavar="SOURCE", help="what to start from; default the embedded model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new model")
    parser.add_argument("--encoder", metavar="MEDSAM", help="semantic-controller: whose features it predicts; default the embedded MedSAM")
    words = parser.add_argument_group("words of the captions, for entries that have none")
    words.add_argument("--modality", default="", metavar="WORD", help="ultrasound, ct, mri, x-ray, endoscopy or fundus")
    words.add_argument("--anatomy", default="", metavar="WORD", help='e.g. "breast"')
    words.add_argument("--finding", default="", metavar="WORD", help='what the label shows, e.g. "malignant mass"')
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_above_zero, metavar="M", help=f"running time; default {DEFAULT_MINUTES:g}")
    length.add_argument("--steps", type=positive, metavar="N", help="optimiser steps instead of minutes")
    parser.add_argument(
        "--lora",
        action="store_true",
        help="inpaint, medsam: train low-rank adapters (peft), merged into DIR; of inpaint alone in DIR/adapter too",
    )
    parser.add_argument("--rank", type=positive, default=8, metavar="R", help="rank of the adapters; default 8")
    parser.add_argument("--text-encoder", action="store_true", help="inpaint: train the text encoder too, for words it does not know")
    parser.add_argument(
        "--decoder",
        action=argparse.BooleanOptionalAction,
        help="inpaint: train the autoencoder's decoder too; default: where the small model shows your images badly",
    )
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="crops in one step, in each process; default 8")
    parser.add_argument("--rate", type=_above_zero, metavar="LR", help="peak learning rate; default by recipe and model size")
    parser.add_argument("--plane", default="axial", choices=PLANES, help="slices of a 3-D image")
    parser.add_argument("--window", type=window, metavar="LO,HI", help="intensities the model sees, e.g. --window=-160,240")
    parser.add_argument("--seed", type=seed, default=0, metavar="N")
    parser.add_argument(
        "--device", default="", metavar="DEVICE", help="cpu, cuda, cuda:1; default cuda where there is one (validator: cpu only)"
    )
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="default float32")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads")
    parser.add_argument("--pictures", type=_pictures, default=4, metavar="N", help="how often sample pictures are drawn; default 4")
    parser.add_argument("--tensorboard", action="store_true", help="write DIR/training/tensorboard too")
    parser.add_argument("--restart", action="store_true", help="forget the run that DIR holds")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train as the options say; returns the exit code.

    Raises:
        WrongInputError: an option cannot be used.
        TrainingInputError: the datalist or a file in it cannot be used.
    """
    check_out(options.out)
    if options.encoder and options.recipe != "semantic-controller":
        raise WrongInputError(f"--encoder is for semantic-controller only; {options.recipe} has none, leave it out")
    if options.decoder is not None and options.recipe != "inpaint":
        raise WrongInputError(f"--decoder is for inpaint only; {options.recipe} decodes nothing anew, leave it out")
    if options.text_encoder and options.recipe in ("validator", "medsam"):
        raise WrongInputError(f"--text-encoder is for inpaint only; {options.recipe} reads no text, leave it out")
    _keep_apart(options)
    from monai_diffaug.training.datalist import Words, read_datalist

    words = Words(options.modality, options.anatomy, options.finding)
    training = read_datalist(options.data, words)
    validation = read_datalist(options.data, words, "validation")

    import torch

    from monai_diffaug.training.processes import joined, own_device

    device = own_device(options.device or ("cuda" if torch.cuda.is_available() and options.recipe != "validator" else "cpu"))
    check_device(device)
    if options.threads:
        torch.set_num_threads(options.threads)
    with joined(device):
        _train(options, training, validation, device)
    return 0


def _train(options: argparse.Namespace, training: list[Any], validation: list[Any], device: str) -> None:
    import torch

    from monai_diffaug.training.labelled_slices import load_slices
    from monai_diffaug.training.loop import TRAINING_FOLDER, fine_tune
    from monai_diffaug.training.processes import failing_together, is_writer
    from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError, require_same_settings

    settings = FineTuneSettings(
        model=options.model,
        minutes=None if options.steps else options.minutes or DEFAULT_MINUTES,
        steps=options.steps,
        lora=options.lora,
        rank=options.rank,
        text_encoder=options.text_encoder,
        batch_size=options.batch_size,
        rate=options.rate,
        seed=options.seed,
        device=device,
        precision=options.precision,
        pictures=options.pictures,
        tensorboard=options.tensorboard,
        decoder=options.decoder,
        encoder=options.encoder or "tiny",
    )
    progress = shows_progress(options)
    target, _ = RECIPES[options.recipe]
    module, _, name = target.partition(":")
    recipe_class = getattr(import_module(module), name)
    with failing_together(torch.device(device)):
        if not options.restart:  # before the images are read, which takes long
            require_same_settings(options.out / TRAINING_FOLDER, recipe_class.name, settings)
        slices = load_slices(training, plane=options.plane, window=options.window, progress=progress)
        held_out = load_slices(validation, plane=options.plane, window=options.window, progress=progress)
        try:
            recipe = recipe_class(settings, slices, held_out)
        except TrainingInputError:
            raise
        except ValueError as error:  # of files that are there and are no such model
            sources = f"--model {options.model}" + (f" with --encoder {options.encoder}" if options.encoder else "")
            raise WrongInputError(f"{sources} cannot be used: {error}") from error
        if options.restart and is_writer():
            _forget(options.out / TRAINING_FOLDER)
    steps = fine_tune(recipe, settings, options.out)
    if not options.quiet and is_writer():
        print(f"{steps} steps on {sum(not s.is_normal for s in slices)} lesions of {len(training)} images: {_taken_by(options)}")


def _taken_by(options: argparse.Namespace) -> str:
    """How a transform is given the new folder."""
    control = {"controlnet": "ControlNet", "semantic-controller": "SemanticController"}.get(options.recipe)
    source = repr(str(options.out))
    return f"model={source}" if control is None else f"options=InpaintOptions(control={control}({source}))"


def _keep_apart(options: argparse.Namespace) -> None:
    """A run that goes on begins with the model that it began with, so it must not replace that."""
    for name in ("model", "encoder"):
        source = getattr(options, name)
        if source and options.out.is_dir() and Path(source).exists() and options.out.samefile(source):
            raise WrongInputError(f"--out {options.out} is the folder of --{name}, which the run would replace; give another --out")


def _forget(folder: Path) -> None:
    """Remove what an earlier run has left, pictures and events too: they would mix with the new ones."""
    for pattern in ("state.ckpt", "settings.json", "log.jsonl", "samples/step_*.png", "tensorboard/events.out.tfevents.*"):
        for file in folder.glob(pattern):
            file.unlink()


def _above_zero(text: str) -> float:
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _pictures(text: str) -> int:
    return whole(text, 0, MOST_PICTURES)
