"""``monai-diffaug train RECIPE``: train a model on the images of a datalist, from trained or from random weights."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from monai_diffaug.files.whole_file import locked_folder, whole_file

if TYPE_CHECKING:
    from monai_diffaug.training.datalist import Entry
    from monai_diffaug.training.run_settings import FineTuneSettings

__all__ = ["RECIPES", "add_parser", "run"]

# Name -> (subclass of monai_diffaug.training.recipe.Recipe, its model). A further recipe is one line.
RECIPES: dict[str, tuple[str, str]] = {
    "vae": ("monai_diffaug.training.recipes.vae_recipe:VaeRecipe", "the autoencoder whose latents the other models work on"),
    "inpaint": ("monai_diffaug.training.recipes.inpaint_recipe:InpaintRecipe", "the model that repaints lesions"),
    "few-steps": (
        "monai_diffaug.training.recipes.few_steps_recipe:FewStepsRecipe",
        "a student of --model that repaints in few steps without guidance",
    ),
    "controlnet": (
        "monai_diffaug.training.recipes.controlnet_recipe:ControlNetRecipe",
        "a network that keeps edges, next to the frozen --inpainter",
    ),
    "semantic-controller": (
        "monai_diffaug.training.recipes.semantic_controller_recipe:SemanticControllerRecipe",
        "a network that predicts the features of the masked tissue, next to the frozen --inpainter",
    ),
    "validator": ("monai_diffaug.training.recipes.validator_recipe:ValidatorRecipe", "the network that checks edits"),
    "medsam": ("monai_diffaug.training.recipes.medsam_recipe:MedSAMRecipe", "the outlines of lesions in boxes"),
    "latent-screen": (
        "monai_diffaug.training.recipes.latent_screen_recipe:LatentScreenRecipe",
        "a network that predicts the verdict of --validator from latents",
    ),
}
OTHER_MODELS = ("inpainter", "vae", "encoder", "validator")
DEFAULT_MINUTES = 10.0
MOST_PICTURES = 1000


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand.

    Args:
        commands: result of ``add_subparsers``.
        common: parser of the options that all commands share.
    """
    table = "; ".join(f"{name}: {text}" for name, (_, text) in RECIPES.items())
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="train a model on your own images",
        description=f"Train a model on the images and labels of a MONAI datalist. Recipes: {table}. "
        "A transform, or a further recipe, takes DIR as its source. The same command resumes a run that was stopped. "
        "torchrun --nproc_per_node N -m monai_diffaug train ... trains on N GPUs or processes.",
    )
    parser.add_argument("recipe", choices=tuple(RECIPES), metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--data", type=Path, required=True, metavar="DATALIST", help='JSON: {"training": [{"image": ..., "label": ...}]}')
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new model")
    parser.add_argument(
        "--model",
        metavar="SOURCE",
        help="start: tiny (embedded), fresh (random weights), a folder, file or hub id; default tiny; fresh for another inpainter",
    )
    sources = parser.add_argument_group("other models, which stay as they are; default tiny, the embedded ones")
    sources.add_argument(
        "--inpainter",
        default="tiny",
        metavar="SOURCE",
        help="controlnet, semantic-controller, latent-screen: the inpainter they are for; validator: the one whose faulty edits it refuses",
    )
    sources.add_argument("--vae", default="tiny", metavar="SOURCE", help="inpaint, validator with fresh weights: their autoencoder")
    sources.add_argument(
        "--encoder", default="tiny", metavar="SOURCE", help="semantic-controller with fresh weights: the MedSAM of its features"
    )
    sources.add_argument("--validator", default="tiny", metavar="SOURCE", help="latent-screen: the validator whose verdict it predicts")
    words = parser.add_argument_group("words of the captions, for entries that have none")
    words.add_argument("--modality", default="", metavar="WORD", help="ultrasound, ct, mri, x-ray, endoscopy or fundus")
    words.add_argument("--anatomy", default="", metavar="WORD", help='e.g. "breast"')
    words.add_argument("--finding", default="", metavar="WORD", help='finding that the label shows, e.g. "malignant mass"')
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_above_zero, metavar="M", help=f"running time; default {DEFAULT_MINUTES:g}")
    length.add_argument("--steps", type=positive, metavar="N", help="optimiser steps instead of minutes")
    parser.add_argument(
        "--share",
        type=_share,
        action="append",
        default=[],
        metavar="NAME=S",
        help='share of the crops that the data set NAME (the "dataset" of the entries) gets; the others share the rest equally. Repeatable',
    )
    parser.add_argument(
        "--lora",
        action="store_true",
        help="inpaint, medsam: train low-rank adapters (peft), merged into DIR; of inpaint in DIR/adapter too",
    )
    parser.add_argument("--rank", type=positive, default=8, metavar="R", help="rank of the adapters; default 8")
    parser.add_argument("--text-encoder", action="store_true", help="inpaint: train the text encoder too, for words it does not know")
    parser.add_argument(
        "--decoder",
        action=argparse.BooleanOptionalAction,
        help="inpaint: train the autoencoder's decoder too; default: where the small model reproduces your images badly",
    )
    parser.add_argument("--freeze-encoder", action="store_true", help="vae, medsam: train the decoder alone")
    parser.add_argument(
        "--texture-weight",
        type=_not_negative,
        default=0.0,
        metavar="W",
        help="vae, inpaint: weight of a loss that makes the decoder keep fine texture, e.g. 0.15; default 0",
    )
    parser.add_argument("--student-steps", type=positive, default=4, metavar="N", help="few-steps: steps of the student; default 4")
    parser.add_argument(
        "--guidance", type=finite, default=3.0, metavar="S", help="few-steps: guidance of the teacher, which the student learns; default 3"
    )
    parser.add_argument(
        "--prediction-type", default="sample", choices=("sample", "epsilon"), help="validator with fresh weights; default sample"
    )
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="crops per step, in each process; default 8")
    parser.add_argument("--rate", type=_above_zero, metavar="LR", help="peak learning rate; default by recipe and model size")
    parser.add_argument("--plane", default="axial", choices=PLANES, help="slices of a 3-D image")
    parser.add_argument("--window", type=window, metavar="LO,HI", help="intensities the model sees, e.g. --window=-160,240")
    parser.add_argument("--seed", type=seed, default=0, metavar="N")
    parser.add_argument("--device", default="", metavar="DEVICE", help="cpu, cuda, cuda:1; default cuda where there is one")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="default float32")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads")
    parser.add_argument("--pictures", type=_pictures, default=4, metavar="N", help="number of times sample pictures are drawn; default 4")
    parser.add_argument("--tensorboard", action="store_true", help="write DIR/training/tensorboard too")
    parser.add_argument("--restart", action="store_true", help="forget the run in DIR")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train as the options say; returns the exit code.

    Raises:
        WrongInputError: an option cannot be used.
        TrainingInputError: the datalist, a file in it or an option of the recipe cannot be used.
    """
    check_out(options.out)
    _keep_apart(options)

    import torch

    from monai_diffaug.training.datalist import Words, read_datalist
    from monai_diffaug.training.processes import joined, local_device

    settings = _settings(options, local_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    recipe_class = _recipe_class(options.recipe)
    recipe_class.check(settings)
    words = Words(options.modality, options.anatomy, options.finding)
    training = read_datalist(options.data, words)
    validation = read_datalist(options.data, words, "validation")
    check_device(settings.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    with joined(settings.device):
        _train(options, recipe_class, settings, training, validation)
    return 0


def _recipe_class(name: str) -> Any:
    module, _, class_name = RECIPES[name][0].partition(":")
    return getattr(import_module(module), class_name)


def _settings(options: argparse.Namespace, device: str) -> FineTuneSettings:
    from monai_diffaug.training.run_settings import FineTuneSettings

    values = {field.name: getattr(options, field.name) for field in fields(FineTuneSettings) if hasattr(options, field.name)}
    is_for_others = options.recipe != "validator" and not options.inpainter == options.encoder == "tiny"
    values["model"] = options.model or ("fresh" if is_for_others else "tiny")
    values["minutes"] = None if options.steps else options.minutes or DEFAULT_MINUTES
    return FineTuneSettings(**{**values, "device": device, "shares": dict(options.share)})


def _train(
    options: argparse.Namespace, recipe_class: Any, settings: FineTuneSettings, training: list[Entry], validation: list[Entry]
) -> None:
    import torch

    from monai_diffaug.training.labelled_slices import load_slices
    from monai_diffaug.training.loop import TRAINING_FOLDER, fine_tune
    from monai_diffaug.training.model_folder import require_own_folder
    from monai_diffaug.training.processes import failing_together, is_writer
    from monai_diffaug.training.run_settings import TrainingInputError, require_same_settings

    progress = shows_progress(options)
    with failing_together(torch.device(settings.device)):
        if is_writer():
            require_own_folder(options.out, options.out / TRAINING_FOLDER)
        if not options.restart:  # before the images are read, which takes long
            require_same_settings(options.out / TRAINING_FOLDER, recipe_class.name, settings)
        slices = load_slices(training, plane=options.plane, window=options.window, progress=progress)
        held_out = load_slices(validation, plane=options.plane, window=options.window, progress=progress)
        try:
            recipe = recipe_class(settings, slices, held_out)
        except TrainingInputError:
            raise
        except ValueError as error:  # the files are there, but are no such model
            others = [f"--{name} {getattr(options, name)}" for name in OTHER_MODELS if getattr(options, name) != "tiny"]
            raise WrongInputError(f"{' with '.join([f'--model {settings.model}', *others])} cannot be used: {error}") from error
    with contextlib.ExitStack() as stack:
        with failing_together(torch.device(settings.device)):
            if is_writer():
                options.out.mkdir(parents=True, exist_ok=True)
                if not stack.enter_context(locked_folder(options.out, wait=False)):
                    raise WrongInputError(f"another run writes to --out {options.out} now; wait for it, or give another --out")
                if options.restart:
                    _forget(options.out, options.recipe)
        steps = fine_tune(recipe, settings, options.out)
    if not options.quiet and is_writer():
        print(f"{steps} steps on {sum(s.has_lesion for s in slices)} lesions of {len(training)} images: {_used_as(options)}")


def _used_as(options: argparse.Namespace) -> str:
    """The argument or option that takes the new folder."""
    source = repr(str(options.out))
    return {
        "controlnet": f"options=InpaintOptions(control=ControlNet({source}))",
        "semantic-controller": f"options=InpaintOptions(control=SemanticController({source}))",
        "latent-screen": f"screen={source}",
        "vae": f"--vae {options.out}",
        "few-steps": f"model={source}, num_inference_steps={options.student_steps}",
    }.get(options.recipe, f"model={source}")


def _keep_apart(options: argparse.Namespace) -> None:
    """A resumed run starts from the same model again, so it must not replace that."""
    for name in ("model", *OTHER_MODELS):
        source = getattr(options, name)
        if source and options.out.is_dir() and Path(source).exists() and options.out.samefile(source):
            raise WrongInputError(f"--out {options.out} is the folder of --{name}, which the run would replace; give another --out")


def _forget(out: Path, recipe: str) -> None:
    """Remove the files of an earlier run, pictures and events too: they would mix with the new ones."""
    from monai_diffaug.training.loop import TRAINING_FOLDER
    from monai_diffaug.training.recipes.inpaint_recipe import ADAPTER_NOTE
    from monai_diffaug.training.run_settings import SETTINGS_FILE

    settings = out / TRAINING_FOLDER / SETTINGS_FILE
    if settings.is_file():  # it stays, because it marks the folder as that of a run
        with whole_file(settings) as part:
            part.write_text(json.dumps({"recipe": recipe}) + "\n", encoding="utf-8")
    for pattern in ("state.ckpt", "log.jsonl", "samples/step_*.png", "tensorboard/events.out.tfevents.*"):
        for file in (out / TRAINING_FOLDER).glob(pattern):
            file.unlink()
    if (out / ADAPTER_NOTE).is_file():
        shutil.rmtree((out / ADAPTER_NOTE).parent)


def _share(text: str) -> tuple[str, float]:
    name, equals, share = text.rpartition("=")
    value = finite(share)
    if not (name and equals and 0 <= value <= 1):
        raise argparse.ArgumentTypeError(f"expected NAME=SHARE with a share in [0, 1], got {text!r}")
    return name, value


def _not_negative(text: str) -> float:
    value = finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def _above_zero(text: str) -> float:
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _pictures(text: str) -> int:
    return whole(text, 0, MOST_PICTURES)
