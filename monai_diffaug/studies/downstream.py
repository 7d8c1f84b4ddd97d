"""Does it help? The same network, steps and seeds, trained with and without synthetic images, tested on held-out groups.

``python -m monai_diffaug.studies.downstream --study breast_ultrasound --arms none,copy_paste,diffaug --seeds 3 --out runs/study``

Each (arm, number of images, seed) is a run with a file of its own under ``--out/runs``; what is there is not run again, so a study can
be made in pieces, and arms can be added later. ``summary_NAME.json``, ``table_NAME.md`` and ``study_NAME.png`` are written anew each time.

The labelled images are drawn once (``--subset-seed``), the same for all arms and seeds; a seed changes the network's start, the
batches and the synthetic images. ``--export-datalist DIR`` writes them for ``monai-diffaug train``, so that a generator can be fine-tuned
on exactly these images: ``--generator clean=DIR2 --seen clean="..." --arms none,inpaint@clean``. What else an arm needs is named the same
way (``--validator clean=DIR3 --arms none,diffaug@clean``); ``shipped`` is the name of the embedded models. With several sizes
(``--n-train 10,20``) ``{n}`` in a source is the number of images: ``--generator clean=runs/clean/ft_{n}``.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_diffaug.prompts import NORMAL
from monai_diffaug.studies.arms import NEEDS, NETWORKS, ArmFactory, Generator, arm_factory, description_of
from monai_diffaug.studies.cases import Case
from monai_diffaug.studies.classification import score_classification, train_classification
from monai_diffaug.studies.markers import replace_between
from monai_diffaug.studies.origin import digest_of, require_origin
from monai_diffaug.studies.segmentation import TaskSettings, score_segmentation, train_segmentation
from monai_diffaug.studies.summary import BASELINE, summarise, table_of
from monai_diffaug.studies.synthetic_cache import SyntheticImages, load_or_make
from monai_diffaug.training.embedded.datasets import Sample, load_samples

__all__ = ["STUDIES", "Study", "held_out_cases", "labelled_cases", "run_one"]

logger = logging.getLogger(__name__)

SHIPPED = "shipped"
SHIPPED_SEEN = "shipped weights: all other training images of this data set too, with labels; no test group"
NO_GENERATOR = "no generator"
NO_NETWORK = "none"
DEFAULT_ARMS = "none,copy_paste,mila,inpaint,diffaug,emit_diff,medsoft"
TASKS = ("segmentation", "classification")


@dataclass(frozen=True)
class Study:
    """Which data a study uses: a name in ``training.datasets.SOURCES``, and the finding that classification calls positive."""

    source: str
    positive: str


STUDIES = {"breast_ultrasound": Study("breast_ultrasound", "malignant mass")}


def case_of(sample: Sample) -> Case:
    """A sample as the study sees it: any finding is the lesion; grey pictures have one channel."""
    image = sample.image.transpose(2, 0, 1)
    grey = bool((image == image[:1]).all())
    findings = [finding for finding, _ in sample.masks()]
    return Case(
        image=np.ascontiguousarray(image[:1] if grey else image),
        label=sample.label > 0,
        finding=findings[0] if findings else NORMAL,
        modality=sample.source.modality,
        anatomy=sample.source.anatomy,
        group=sample.group,
        index=sample.index,
    )


def labelled_cases(study: Study, n: int, subset_seed: int = 0, root: str | None = None) -> list[Case]:
    """``n`` images of the training split, of all findings and normal tissue in the proportions of the split.

    A smaller ``n`` is a part of a larger one. At most one image a group.

    Raises:
        ValueError: the split has fewer groups.
    """
    rng = np.random.RandomState(subset_seed)
    samples = load_samples(study.source, "train", root)
    order = [samples[i] for i in rng.permutation(len(samples))]
    pools: dict[str, list[Case]] = {}
    seen: set[int] = set()
    for sample in order:
        if sample.group not in seen:
            seen.add(sample.group)
            case = case_of(sample)
            pools.setdefault(case.finding, []).append(case)
    total = sum(map(len, pools.values()))
    if not 1 <= n <= total:
        raise ValueError(f"the training split has {total} groups; cannot draw {n} labelled images of different groups")
    # the finding that is furthest behind its share comes next: any beginning of this list has about the right proportions
    chosen: list[Case] = []
    taken = dict.fromkeys(sorted(pools), 0)
    while len(chosen) < n:
        behind = max(taken, key=lambda f: (len(pools[f]) / total) * (len(chosen) + 1) - taken[f] if taken[f] < len(pools[f]) else -np.inf)
        chosen.append(pools[behind][taken[behind]])
        taken[behind] += 1
    return chosen


def held_out_cases(study: Study, root: str | None = None) -> list[Case]:
    """All images of the validation groups, which no shipped model has seen."""
    return [case_of(sample) for sample in load_samples(study.source, "validation", root)]


def run_one(
    study: Study,
    task: str,
    real: Sequence[Case],
    test: Sequence[Case],
    synthetic: Sequence[Case],
    settings: TaskSettings,
    seed: int,
) -> list[dict[str, float | int | str]]:
    """Train once and score each test image.

    Raises:
        ValueError: unknown task.
    """
    if task == "segmentation":
        return score_segmentation(train_segmentation(real, synthetic, settings, seed), test, settings)
    if task == "classification":
        network = train_classification(real, synthetic, study.positive, settings, seed)
        return score_classification(network, test, study.positive, settings)
    raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")


def file_name(*parts: object) -> str:
    """The parts as a file's stem."""
    return re.sub(r"[^\w.@-]+", "-", "_".join(map(str, parts)))


def resolve(options: argparse.Namespace, arm: str) -> tuple[ArmFactory | None, Generator, tuple[str, ...] | None]:
    """The factory of ``NAME`` or ``NAME@GENERATOR``, its generator, and the networks that it uses of it (None: no generator at all).

    Raises:
        ValueError: no such arm or generator, or the generator lacks a network that the arm needs.
    """
    name, _, generator_name = arm.partition("@")
    factory = arm_factory(name)
    generator = options.generators.get(generator_name or SHIPPED)
    if generator is None:
        raise ValueError(f"arm {arm!r}: no generator {generator_name!r}; add --generator {generator_name}=SOURCE")
    for network in NEEDS.get(name) or ():
        try:
            generator.named(network)
        except ValueError as error:
            raise ValueError(f"arm {arm!r}: {error}") from error
    return factory, generator, NEEDS.get(name, NETWORKS)


def generator_record(generator: Generator, networks: tuple[str, ...] | None) -> dict[str, str | None]:
    """What a run keeps of its generator: the sources that it used and what they had seen."""
    if networks is None:
        return {"source": "", "seen": NO_GENERATOR}
    return {"source": generator.source, "seen": generator.seen, **{name: getattr(generator, name) for name in networks}}


def _digests(generator: Generator, networks: tuple[str, ...] | None) -> dict[str, str]:
    """Of the weights that an arm uses, by network."""
    if networks is None:
        return {}
    sources = {"inpainter": generator.source, **{name: getattr(generator, name) for name in networks}}
    return {name: digest_of(name, source) for name, source in sources.items() if source is not None}


def run_arm(options: argparse.Namespace, arm: str, n: int, seed: int) -> dict[str, Any]:
    """One run: read its file, or make the synthetic images, train, score and write it.

    Raises:
        ValueError: the file there was made with other settings or other weights, or the arm or its generator is unknown.
    """
    study = STUDIES[options.study]
    settings = TaskSettings(
        options.steps, options.batch_size, options.size_px, options.synthetic_share, options.rate, compile=options.compile
    )
    factory, generator, networks = resolve(options, arm)
    generator = generator.of_images(n)
    setup = {
        "study": options.study,
        "task": options.task,
        "arm": arm,
        "n_train": n,
        "seed": seed,
        "subset_seed": options.subset_seed,
        "settings": asdict(settings),
        "synthetic_wanted": options.synthetic if factory else 0,
        "generator": generator_record(generator, networks),
    }
    file = options.out / "runs" / (file_name(options.task, arm, f"n{n}", f"s{seed}") + ".json")
    folder = options.out / "synthetic" / file_name(arm, f"n{n}", f"s{seed}")
    origin = {"study": options.study, "subset_seed": options.subset_seed, **_digests(generator, networks)}
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        differing = [key for key, value in setup.items() if known.get(key) != value]
        if differing:
            made_of = f", and {folder} with it" if folder.is_dir() else ""
            raise ValueError(f"{file} was made with another {', '.join(differing)}; use another --out, or delete it{made_of}")
        if folder.is_dir():
            require_origin(folder, origin)
        return known
    real, test = labelled_cases(study, n, options.subset_seed), held_out_cases(study)
    made = SyntheticImages([], 0, 0.0)
    if factory is not None:
        require_origin(folder, origin)
        made = load_or_make(folder, factory(real, generator), real, options.synthetic, seed=seed, max_seconds=options.max_synthesis_s)
    began = time.monotonic()
    rows = run_one(study, options.task, real, test, made.cases, settings, seed)
    result = {
        **setup,
        "method": description_of(factory),
        "n_synthetic": len(made.cases),
        "attempts": made.attempts,
        "synthesis_s": round(made.seconds, 1),
        "training_s": round(time.monotonic() - began, 1),
        "images": rows,
    }
    _write(file, json.dumps(result))
    return result


def export_datalist(study: Study, n: int, subset_seed: int, folder: Path) -> Path:
    """Write the labelled images as PNG with ``datalist.json``, for ``monai-diffaug train``; returns its path."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in labelled_cases(study, n, subset_seed):
        pixels = case.image[0] if len(case.image) == 1 else case.image.transpose(1, 2, 0)
        name = f"{case.index:04d}"
        Image.fromarray(pixels).save(folder / f"{name}.png")
        Image.fromarray(case.label.astype(np.uint8)).save(folder / f"{name}_label.png")
        words = {"modality": case.modality, "anatomy": case.anatomy, "finding": case.finding}
        rows.append({"image": f"{name}.png", "label": f"{name}_label.png", **words})
    _write(folder / "datalist.json", json.dumps({"training": rows}, indent=1))
    return folder / "datalist.json"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(file)


def _named(pairs: Sequence[str], option: str) -> dict[str, str]:
    table = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{option} must be NAME=VALUE, got {pair!r}")
        table[name] = value
    return table


def _generators(options: argparse.Namespace) -> dict[str, Generator]:
    """The shipped one and those given; a generator whose past nobody states is not used."""
    sources, seen = _named(options.generator, "--generator"), _named(options.seen, "--seen")
    networks = {name: _named(getattr(options, name), f"--{name.replace('_', '-')}") for name in NETWORKS}
    missing = sorted(set(sources) - set(seen))
    if missing:
        raise ValueError(f'say what the generator has seen: --seen {missing[0]}="..."')
    for option, given in networks.items():
        strangers = sorted(set(given) - set(sources) - {SHIPPED})
        if strangers:
            flag, name = option.replace("_", "-"), strangers[0]
            raise ValueError(f"--{flag} {name}=...: no generator {name!r}; add --generator {name}=SOURCE")
    table = {SHIPPED: Generator("tiny", SHIPPED_SEEN, **_networks_of(SHIPPED, networks, "tiny"))}
    for name, source in sources.items():
        table[name] = Generator(source, seen[name], **_networks_of(name, networks, NO_NETWORK))
    return table


def _networks_of(name: str, given: dict[str, dict[str, str]], default: str) -> dict[str, str | None]:
    chosen = {network: table.get(name, default) for network, table in given.items()}
    return {network: None if source == NO_NETWORK else source for network, source in chosen.items()}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=tuple(STUDIES), default="breast_ultrasound")
    parser.add_argument("--task", choices=TASKS, default="segmentation")
    parser.add_argument("--out", type=Path, default=Path("runs/downstream"))
    parser.add_argument("--arms", default=DEFAULT_ARMS, help="NAME, NAME@GENERATOR or package.module:function; default %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--n-train", default="40", help="labelled images, e.g. 10,20,40")
    parser.add_argument("--reference", type=int, metavar="N", help="train none on N labelled images too: what more real data would add")
    parser.add_argument("--subset-seed", type=int, default=0, help="of the draw of the labelled images")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps of each network")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size-px", type=int, default=96, help="side of the networks' input")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of the segmenters")
    parser.add_argument("--synthetic", type=int, default=64, help="synthetic images of a run, made once and used again and again")
    parser.add_argument("--synthetic-share", type=float, default=0.5, help="of a batch")
    parser.add_argument("--compile", action="store_true", help="train segmenters through torch.compile: faster, needs a C++ compiler")
    parser.add_argument("--max-synthesis-s", type=float, default=110.0, help="stop making synthetic images after this time")
    parser.add_argument("--generator", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--seen", action="append", default=[], metavar="NAME=TEXT", help="what that generator has seen")
    for network, arm in (("validator", "diffaug"), ("medsam", "mila"), ("controlnet", "emit_diff"), ("semantic-controller", "medsoft")):
        text = f"of that generator, needed by {arm}; default none, of {SHIPPED!r} the embedded one"
        parser.add_argument(f"--{network}", action="append", default=[], metavar="NAME=SOURCE", help=text)
    parser.add_argument("--export-datalist", type=Path, metavar="DIR", help="write the labelled images for fine-tuning, and stop")
    parser.add_argument("--name", help="of the summary, the table and the picture; default the task")
    parser.add_argument("--readme", type=Path, help="put the table between the markers study-NAME of this Markdown file")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main() -> None:
    parser = build_parser()
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    try:
        options.generators = _generators(options)
        sizes = [int(text) for text in options.n_train.split(",")]
        if options.export_datalist is not None:
            file = export_datalist(STUDIES[options.study], max(sizes), options.subset_seed, options.export_datalist)
            sys.stdout.write(f"{file}\n")
            return
        arms = options.arms.split(",")
        for arm in arms:
            resolve(options, arm)
        runs = []
        # by seed first: a study that is cut short has whole rows of few seeds rather than few rows
        wanted = [(arm, n) for n in sizes for arm in arms] + [(BASELINE, options.reference)] * (options.reference is not None)
        pairs = list(dict.fromkeys(wanted))  # a run that is named twice counts once
        for seed in range(options.seeds):
            for arm, n in pairs:
                result = run_arm(options, arm, n, seed)
                spent = f"{result['synthesis_s']:.0f} s + {result['training_s']:.0f} s"
                logger.info("%s n=%d seed %d: %d synthetic, %s", arm, n, seed, result["n_synthetic"], spent)
                runs.append(result)
    except ValueError as error:
        parser.error(str(error))
    name = options.name or options.task
    summary = summarise(runs)
    _write(options.out / f"summary_{name}.json", json.dumps(summary, indent=1))
    text = table_of(summary)
    _write(options.out / f"table_{name}.md", text)
    sys.stdout.write(text + "\n")
    if options.readme is not None:
        options.readme.write_text(replace_between(options.readme.read_text(), f"study-{name}", text + "\n"))
    from monai_diffaug.studies.study_plot import plot_study

    plot_study(summary, options.out / f"study_{name}.png")


if __name__ == "__main__":
    main()
