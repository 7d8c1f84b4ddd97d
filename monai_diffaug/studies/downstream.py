"""Does it help? The same network, steps and seeds, trained with and without synthetic images, tested on held-out groups.

``monai-diffaug evaluate downstream --data datalist.json --arms none,copy_paste,diffaug --seeds 3 --out runs/study``

Each (arm, number of images, seed) is a run with its own file under ``--out/runs``; runs that are there are not repeated, so a study can
be made in pieces, and arms can be added later. ``summary_NAME.json``, ``table_NAME.md`` and ``study_NAME.png`` are written each time.

The labelled images are drawn once (``--subset-seed``) from the training list, the same for all arms and seeds; a seed changes the network's
start, the batches and the synthetic images. ``--export-datalist DIR`` writes them for ``monai-diffaug train``, so that a generator can be
fine-tuned on exactly these images: ``--generator clean=DIR2 --seen clean="..." --arms none,inpaint@clean``. Further networks of an arm are
named the same way (``--validator clean=DIR3 --arms none,diffaug@clean``); ``shipped`` is the name of the embedded models. With several
sizes (``--n-train 10,20``) ``{n}`` in a source is the number of images: ``--generator clean=runs/clean/ft_{n}``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies import downstream_tasks as tasks
from monai_diffaug.studies.arms import NETWORKS, ArmFactory, Generator, arm_of, description_of
from monai_diffaug.studies.markers import replace_between
from monai_diffaug.studies.masked_images import MaskedImage, masked
from monai_diffaug.studies.report import run_study, study_parser, write_text
from monai_diffaug.studies.study_images import TRAINING, VALIDATION, StudyData, StudyInputError
from monai_diffaug.studies.summary import BASELINE, summarise, table_of
from monai_diffaug.studies.synthetic_cache import SyntheticImages, digest_of, load_or_make, require_origin

__all__ = ["build_parser", "labelled_cases", "run_one"]

logger = logging.getLogger(__name__)

SHIPPED = "shipped"
SHIPPED_SEEN = "shipped weights: all other training images of this data set too, with labels; no test group"
NO_GENERATOR = "no generator"
NO_NETWORK = "none"
DEFAULT_ARMS = "none,copy_paste,mila,inpaint,diffaug,emit_diff,medsoft"
TASKS = ("segmentation", "classification")


def cases_of(data: StudyData, section: str) -> list[MaskedImage]:
    """The images of a list, each with everything labelled as the lesion; grey images have one channel, or three if others are coloured."""
    channels = max(image.image.shape[0] for listed in (TRAINING, VALIDATION) for image in data.images(listed))
    cases = [masked(image, image.labelled, image.findings[0][0] if image.findings else NORMAL) for image in data.images(section)]
    return [case if len(case.image) == channels else replace(case, image=case.image.expand(channels, -1, -1)) for case in cases]


def labelled_cases(data: StudyData, n: int, subset_seed: int = 0) -> list[MaskedImage]:
    """``n`` images of the training list, one per group, with all findings and normal tissue in the proportions of the list.

    A smaller ``n`` is a part of a larger one. StudyInputError where the list has fewer groups.
    """
    cases = cases_of(data, TRAINING)
    pools: dict[str, list[MaskedImage]] = {}
    groups: set[int] = set()
    for i in np.random.RandomState(subset_seed).permutation(len(cases)):
        if cases[i].group not in groups:
            groups.add(cases[i].group)
            pools.setdefault(cases[i].finding, []).append(cases[i])
    total = sum(map(len, pools.values()))
    if not 1 <= n <= total:
        raise StudyInputError(f"the training list has {total} groups; cannot draw {n} labelled images of different groups")
    # the finding that is furthest behind its share comes next: any beginning of this list has about the right proportions
    chosen: list[MaskedImage] = []
    taken = dict.fromkeys(sorted(pools), 0)
    while len(chosen) < n:
        behind = max(taken, key=lambda f: (len(pools[f]) / total) * (len(chosen) + 1) - taken[f] if taken[f] < len(pools[f]) else -np.inf)
        chosen.append(pools[behind][taken[behind]])
        taken[behind] += 1
    return chosen


def positive_of(options: argparse.Namespace, data: StudyData) -> str:
    """The finding that classification calls positive."""
    words = data.finding_words
    positive: str = options.positive or words[-1]
    if positive not in words or len(words) < 2:
        raise StudyInputError(f"--positive must be one of several findings, got {positive!r}; {data.file} has {', '.join(words)}")
    return positive


def run_one(
    task: str,
    real: Sequence[MaskedImage],
    test: Sequence[MaskedImage],
    synthetic: Sequence[MaskedImage],
    settings: tasks.TaskSettings,
    seed: int,
    positive: str = "",
) -> list[dict[str, float | int | str]]:
    """Train once and score each test image."""
    if task == "segmentation":
        return tasks.score_segmentation(tasks.train_segmentation(real, synthetic, settings, seed), test, settings)
    network = tasks.train_classification(real, synthetic, positive, settings, seed)
    return tasks.score_classification(network, test, positive, settings)


def file_name(*parts: object) -> str:
    """The parts as a file's stem."""
    return re.sub(r"[^\w.@-]+", "-", "_".join(map(str, parts)))


def resolve(generators: dict[str, Generator], arm: str) -> tuple[ArmFactory | None, Generator, tuple[str, ...] | None]:
    """Factory, generator and networks (None: no generator at all) of the arm ``NAME`` or ``NAME@GENERATOR``; ValueError if one lacks."""
    name, _, generator_name = arm.partition("@")
    factory, networks = arm_of(name)
    generator = generators.get(generator_name or SHIPPED)
    if generator is None:
        raise ValueError(f"arm {arm!r}: no generator {generator_name!r}; add --generator {generator_name}=SOURCE")
    try:
        for network in (networks or ()) if ":" not in name else ():
            generator.named(network)
    except ValueError as error:
        raise ValueError(f"arm {arm!r}: {error}") from error
    return factory, generator, networks


def generator_record(generator: Generator, networks: tuple[str, ...] | None) -> dict[str, str | None]:
    """The record of a run's generator: its sources and their training data."""
    if networks is None:
        return {"source": "", "seen": NO_GENERATOR}
    return {"source": generator.source, "seen": generator.seen, **{name: getattr(generator, name) for name in networks}}


def _digest(cases: Sequence[MaskedImage]) -> str:
    """Of images, masks and findings."""
    total = hashlib.sha256()
    for case in cases:
        total.update(case.finding.encode() + case.image.numpy().tobytes() + case.mask.numpy().tobytes())
    return total.hexdigest()[:16]


def run_arm(options: argparse.Namespace, data: StudyData, arm: str, n: int, seed: int) -> dict[str, Any]:
    """One run: read its file, or make the synthetic images, train, score and write it.

    Raises:
        ValueError: the file there was made with other settings, images or weights, or the arm or its generator is unknown.
    """
    settings = tasks.TaskSettings(**{field.name: getattr(options, field.name) for field in fields(tasks.TaskSettings)})
    factory, generator, networks = resolve(options.generators, arm)
    generator = replace(generator.of_images(n), more_labelled=partial(labelled_cases, data, subset_seed=0))
    real, test = labelled_cases(data, n, options.subset_seed), cases_of(data, VALIDATION)
    labelled = {"data": data.title, "subset_seed": options.subset_seed, "images_digest": _digest(real)}
    setup = {
        **labelled,
        "task": options.task,
        "arm": arm,
        "n_train": n,
        "seed": seed,
        "settings": asdict(settings),
        "synthetic_wanted": options.synthetic if factory else 0,
        "generator": generator_record(generator, networks),
    }
    file = options.out / "runs" / (file_name(options.task, arm, f"n{n}", f"s{seed}") + ".json")
    folder = options.out / "synthetic" / file_name(arm, f"n{n}", f"s{seed}")
    sources = {} if networks is None else {"inpainter": generator.source, **{name: getattr(generator, name) for name in networks}}
    origin = {**labelled, **{name: digest_of(name, source) for name, source in sources.items() if source is not None}}
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        differing = [key for key, value in setup.items() if known.get(key) != value]
        if differing:
            made_of = f", and {folder} with it" if folder.is_dir() else ""
            raise ValueError(f"{file} was made with another {', '.join(differing)}; use another --out, or delete it{made_of}")
        if folder.is_dir():
            require_origin(folder, origin)
        return known
    synthetic = SyntheticImages([], 0, 0.0)
    if factory is not None:
        require_origin(folder, origin)
        transform = factory(real, generator)
        synthetic = load_or_make(folder, transform, real, options.synthetic, seed=seed, max_seconds=options.max_synthesis_s)
    began = time.monotonic()
    positive = positive_of(options, data) if options.task == "classification" else ""
    rows = run_one(options.task, real, test, synthetic.cases, settings, seed, positive)
    result = {
        **setup,
        "method": description_of(factory),
        "n_synthetic": len(synthetic.cases),
        "attempts": synthetic.attempts,
        "synthesis_s": round(synthetic.seconds, 1),
        "training_s": round(time.monotonic() - began, 1),
        "images": rows,
    }
    write_text(json.dumps(result) + "\n", file)
    return result


def export_datalist(data: StudyData, n: int, subset_seed: int, folder: Path) -> Path:
    """Write the labelled images as PNG with ``datalist.json``, for ``monai-diffaug train``; returns its path."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, case in enumerate(labelled_cases(data, n, subset_seed)):
        pixels = case.image[0] if len(case.image) == 1 else case.image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:04d}.png")
        Image.fromarray(case.mask[0].numpy()).save(folder / f"{i:04d}_label.png")
        words = {"modality": case.modality, "anatomy": case.anatomy, "finding": case.finding}
        rows.append({"image": f"{i:04d}.png", "label": f"{i:04d}_label.png", **words})
    write_text(json.dumps({"training": rows}, indent=1) + "\n", folder / "datalist.json")
    return folder / "datalist.json"


def generators_of(options: argparse.Namespace) -> dict[str, Generator]:
    """The shipped generator and those of the command line, an option NAME=VALUE per field; they must state their training data."""
    fields: dict[str, dict[str, Any]] = {SHIPPED: {"source": "tiny", "seen": SHIPPED_SEEN}}
    for option in ("generator", "seen", *NETWORKS):
        flag, field = f"--{option.replace('_', '-')}", "source" if option == "generator" else option
        for pair in getattr(options, option):
            name, equals, value = pair.partition("=")
            if not (name and equals and value):
                raise ValueError(f"{flag} must be NAME=VALUE, got {pair!r}")
            if option == "generator":
                fields[name] = dict.fromkeys(NETWORKS)
            elif name not in fields:
                raise ValueError(f"{flag} {name}=...: no generator {name!r}; add --generator {name}=SOURCE")
            fields[name][field] = None if value == NO_NETWORK else value
    silent = [name for name, values in fields.items() if "seen" not in values]
    if silent:
        raise ValueError(f'say what the generator has seen: --seen {silent[0]}="..."')
    return {name: Generator(**values) for name, values in fields.items()}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = study_parser(__doc__, model=None, repaints=False, seed=False, out="folder of the runs, the summary and the table")
    parser.set_defaults(out=Path("runs/downstream"))
    parser.add_argument("--task", choices=TASKS, default="segmentation")
    parser.add_argument("--positive", metavar="FINDING", help="that classification tells from the others; default the last of the datalist")
    parser.add_argument("--arms", default=DEFAULT_ARMS, help="NAME, NAME@GENERATOR or package.module:function; default %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--n-train", default="40", help="labelled images, e.g. 10,20,40")
    parser.add_argument("--reference", type=int, metavar="N", help="train none on N labelled images too: the gain of more real data")
    parser.add_argument("--subset-seed", type=int, default=0, help="of the draw of the labelled images")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps of each network")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size-px", type=int, default=96, help="side of the networks' input")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of the segmenters")
    parser.add_argument("--synthetic", type=int, default=64, help="synthetic images of a run, made once and used throughout")
    parser.add_argument("--synthetic-share", type=float, default=0.5, help="of a batch")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile: faster, needs a C++ compiler")
    parser.add_argument("--max-synthesis-s", type=float, default=110.0, help="stop making synthetic images after this time")
    parser.add_argument("--generator", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--seen", action="append", default=[], metavar="NAME=TEXT", help="training data of that generator")
    for network, arm in (("validator", "diffaug"), ("medsam", "mila"), ("controlnet", "emit_diff"), ("semantic-controller", "medsoft")):
        text = f"of that generator, needed by {arm}; default none, of {SHIPPED!r} the embedded one"
        parser.add_argument(f"--{network}", action="append", default=[], metavar="NAME=SOURCE", help=text)
    parser.add_argument("--export-datalist", type=Path, metavar="DIR", help="write the labelled images for fine-tuning, and stop")
    parser.add_argument("--name", help="of the summary, the table and the picture; default the task")
    parser.add_argument("--readme", type=Path, help="put the table between the markers study-NAME of this Markdown file")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, None]:
    torch.set_num_threads(options.threads)
    try:
        return _text(options, data.require_one()), None
    except ValueError as error:
        raise StudyInputError(str(error)) from error


def _text(options: argparse.Namespace, data: StudyData) -> str:
    """Run all arms and write the summary, the table and the picture; returns the table."""
    options.generators = generators_of(options)
    sizes = [int(text) for text in options.n_train.split(",")]
    if options.export_datalist is not None:
        return str(export_datalist(data, max(sizes), options.subset_seed, options.export_datalist))
    arms = options.arms.split(",")
    for arm in arms:
        resolve(options.generators, arm)
    runs = []
    # by seed first: a study that is cut short has whole rows of few seeds rather than few rows
    pairs = [(arm, n) for n in sizes for arm in arms] + [(BASELINE, options.reference)] * (options.reference is not None)
    for seed in range(options.seeds):
        for arm, n in dict.fromkeys(pairs):  # a run that is named twice counts once
            result = run_arm(options, data, arm, n, seed)
            spent = f"{result['synthesis_s']:.0f} s + {result['training_s']:.0f} s"
            logger.info("%s n=%d seed %d: %d synthetic, %s", arm, n, seed, result["n_synthetic"], spent)
            runs.append(result)
    name = options.name or options.task
    summary = summarise(runs)
    text = table_of(summary)
    write_text(json.dumps(summary, indent=1) + "\n", options.out / f"summary_{name}.json")
    write_text(text + "\n", options.out / f"table_{name}.md")
    if options.readme is not None:
        options.readme.write_text(replace_between(options.readme.read_text(), f"study-{name}", text + "\n"))
    from monai_diffaug.studies.study_plot import plot_study

    plot_study(summary, options.out / f"study_{name}.png")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    return run_study(build_parser(), _study, arguments, needs="training and validation images", preferred=("breast_ultrasound",))
