"""What does it save to refuse candidates by their latents, and what does it cost? ``python -m monai_diffaug.studies.screen_savings``.

First, how well the screen foretells the full validator's verdict: findings are painted into validation images (breast ultrasound: into
free places of normal images; other data sets: over real lesions, with the finding's own prompt), one candidate a place; each is screened on
the way (at the clean latents predicted after a share of the steps) and at the end, decoded and judged. Printed for several least Dices:
how many of the candidates that the validator accepts pass the screen, and how many of those that it rejects are caught undecoded.

Then, what it saves: the same places and seeds through ``LatentValidated(on_reject="retry")`` without the screen and with it, looking on
the way or at the end, in CPU seconds of the process per accepted sample.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.edit.repaint import Candidate, Look
from monai_diffaug.edit.screening import CandidateScreen
from monai_diffaug.edit.validation_options import Screen
from monai_diffaug.studies.bootstrap import Interval, interval
from monai_diffaug.studies.classification import auc as ranking_auc
from monai_diffaug.studies.painted import PROMPTS
from monai_diffaug.studies.regions import Region, free_places, real_lesions
from monai_diffaug.studies.report import study_parser, write_json
from monai_diffaug.training.embedded.datasets import SOURCES
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

__all__ = ["Judged", "Row", "Saving", "auc", "judge", "places_of", "rows_of", "saving", "threshold_that_keeps"]

FREE = "breast_ultrasound"
OTHERS = ("colonoscopy_polyp", "endoscopy_disease", "brain_mri_tumour", "fundus_disc_cup", "spleen_ct")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
KEPT = 0.95  # share of what the validator would accept that has to pass


@dataclass(frozen=True)
class Judged:
    """One candidate.

    Attributes:
        source: name of the data set.
        group: of the image.
        dice: of what the screen finds in the latents that are predicted on the way with the mask.
        dice_at_end: the same of the finished latents.
        accepted: the full validator's verdict.
        score: the full validator's Dice.
        seconds: CPU time of "sampling", "screening", "decoding" and "validating" it.
    """

    source: str
    group: int
    dice: float
    dice_at_end: float
    accepted: bool
    score: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Row:
    """What a least Dice does: share of the accepted that pass, and of the rejected that are caught."""

    min_dice: float
    kept: Interval
    caught: Interval


@dataclass(frozen=True)
class Saving:
    """One arm of the comparison: sums over all places; ``screened`` candidates were refused undecoded."""

    arm: str
    places: int
    accepted: int
    candidates: int
    screened: int
    cpu_seconds: float

    @property
    def seconds_per_accepted(self) -> float:
        return self.cpu_seconds / self.accepted if self.accepted else float("nan")


def places_of(source: str, n: int, seed: int) -> list[tuple[Region, str]]:
    """Where something is painted, and the prompt."""
    if source == FREE:
        return [(place, PROMPTS[i % len(PROMPTS)][1]) for i, place in enumerate(free_places(n, seed=seed))]
    words = next(known for known in SOURCES if known.name == source)
    return [(region, f"{words.modality} of {words.anatomy}, {region.finding}") for region in real_lesions(n, source=source, seed=seed)]


def judge(
    places: Sequence[tuple[Region, str]],
    source: str,
    *,
    screen: Any = "tiny",
    after: float = Screen.after,
    model: Any = "tiny",
    validator: Any = "tiny",
    seed: int = 0,
    num_inference_steps: int = 12,
    guidance_scale: float = 3.0,
) -> list[Judged]:
    """One candidate a place, screened after a share of the steps and at the end, decoded and judged, whatever the screen says."""
    inpaint = DiffusionLocalInpaint(model, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, device="cpu")
    validate, judge_latents = LatentValidate(validator, device="cpu"), CandidateScreen(Screen(screen))
    network = inpaint.inpainter_on(torch.device("cpu"))
    judged = []
    seen: list[float] = []

    def pass_all(candidate: Candidate) -> bool:
        seen.append(judge_latents.score(network, candidate))
        return True

    for i, (place, prompt) in enumerate(places):
        clock = [time.process_time()]
        (sampled,) = inpaint.sample_batch([place.image], [place.mask], [prompt], seeds=[seed + i], look=Look(after, pass_all))
        if not isinstance(sampled.outcome, Candidate):
            raise RuntimeError(f"nothing was painted into image {place.index} of {source}: {sampled.outcome.reason}")
        clock.append(time.process_time())
        at_end = judge_latents.score(network, sampled.outcome)
        clock.append(time.process_time())
        (edit,) = inpaint.finish_batch([sampled])
        clock.append(time.process_time())
        verdict = validate(edit.image, place.mask, place.image, seed=seed + i)
        clock.append(time.process_time())
        seconds = dict(zip(("sampling", "screening", "decoding", "validating"), np.diff(clock).tolist(), strict=True))
        judged.append(Judged(source, place.group, seen[-1], at_end, verdict.accepted, verdict.score, seconds))
    return judged


def auc(judged: Sequence[Judged], dice: Sequence[float] | None = None) -> float:
    """Chance that of an accepted and a rejected candidate the accepted has the higher Dice (ties count half); nan without both.

    Args:
        judged: candidates.
        dice: one a candidate; None takes that of the look on the way.
    """
    return ranking_auc([j.dice for j in judged] if dice is None else dice, [int(j.accepted) for j in judged])


def rows_of(judged: Sequence[Judged], thresholds: Sequence[float] = THRESHOLDS) -> list[Row]:
    """A row for each least Dice of the look on the way, with 95 % intervals over the images.

    Raises:
        ValueError: no candidates.
    """
    dice, accepted = np.array([j.dice for j in judged]), np.array([j.accepted for j in judged])
    groups = [f"{j.source} {j.group}" for j in judged]

    def share(passes: NDArray[np.bool_], among: NDArray[np.bool_], picks: NDArray[np.int64]) -> float:
        chosen = passes[picks][among[picks]]
        return float(chosen.mean()) if len(chosen) else float("nan")

    return [
        Row(
            least,
            interval(lambda picks, least=least: share(dice >= least, accepted, picks), groups),  # type: ignore[misc]
            interval(lambda picks, least=least: share(dice < least, ~accepted, picks), groups),  # type: ignore[misc]
        )
        for least in thresholds
    ]


def threshold_that_keeps(judged: Sequence[Judged], kept: float = KEPT) -> float:
    """The highest least Dice, in steps of 0.05, that lets ``kept`` of the accepted candidates pass; 0 when none is accepted."""
    accepted = np.array([j.dice for j in judged if j.accepted])
    steps = [round(0.05 * i, 2) for i in range(20)]
    return max((step for step in steps if len(accepted) and float((accepted >= step).mean()) >= kept), default=0.0)


def saving(
    places: Sequence[tuple[Region, str]],
    *,
    screen: Any = "tiny",
    min_screen_dice: float = Screen.min_dice,
    after: float = Screen.after,
    model: Any = "tiny",
    validator: Any = "tiny",
    seed: int = 0,
    num_inference_steps: int = 12,
    guidance_scale: float = 3.0,
    max_tries: int = 3,
) -> tuple[list[Saving], int]:
    """All arms, place by place in turn, after one place to warm up; and how many places gave the same image, bit by bit, in all.

    Args:
        places: with their prompts.
        screen: its source.
        min_screen_dice, after: of the screen; it looks at the end in a further arm.
        model, validator: sources.
        seed: of the first place.
        num_inference_steps, guidance_scale: of the sampler.
        max_tries: candidates a place at most.
    """
    inpaint = DiffusionLocalInpaintd(
        "image", model=model, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, device="cpu"
    )
    common: dict[str, Any] = {"model": validator, "inpaint": inpaint, "on_reject": "retry", "max_tries": max_tries, "device": "cpu"}
    arms = {
        "no screen": LatentValidated("image", **common),
        "screen on the way": LatentValidated("image", screen=Screen(screen, min_screen_dice, after), **common),
        "screen at the end": LatentValidated("image", screen=Screen(screen, min_screen_dice, 1.0), **common),
    }
    spent = dict.fromkeys(arms, 0.0)
    same = 0
    for i, (place, prompt) in enumerate([places[0], *places]):
        images = []
        for name in list(arms)[:: 1 if i % 2 else -1]:
            if i == 1:
                arms[name].reset_statistics()
            start = time.process_time()
            sample = {"image": place.image, "mask": place.mask, "prompt": prompt}
            images.append(torch.as_tensor(arms[name].set_random_state(seed + i)(sample)["image"]))
            spent[name] += (time.process_time() - start) * (i > 0)
        same += int(i > 0 and all(torch.equal(images[0], image) for image in images[1:]))
    counted = {name: arm.statistics for name, arm in arms.items()}
    return [
        Saving(name, len(places), n["accepted"], len(places) + n["retried"], n.get("screened", 0), spent[name])
        for name, n in counted.items()
    ], same


def table(judged: Sequence[Judged], rows: Sequence[Row], savings: Sequence[Saving], same: int) -> str:
    """What the screen foretells, what a candidate costs, and what is saved."""
    lines = [f"{'candidates':<22}{'n':>5}{'accepted':>10}{'AUC':>8}{'at the end':>12}"]
    for name in (*dict.fromkeys(j.source for j in judged), "all"):
        own = [j for j in judged if name in (j.source, "all")]
        at_end = auc(own, [j.dice_at_end for j in own])
        lines.append(f"{name:<22}{len(own):>5}{sum(j.accepted for j in own):>10}{auc(own):>8.3f}{at_end:>12.3f}")
    lines.append(f"{'least Dice':<12}{'accepted ones that pass':<26}{'rejected ones caught undecoded':<32}")
    lines += [f"{row.min_dice:<12.2f}{row.kept!s:<26}{row.caught!s:<32}" for row in rows]
    lines.append(f"{100 * KEPT:.0f} % of the accepted pass up to a least Dice of {threshold_that_keeps(judged):.2f}")
    parts = {name: 1000 * float(np.mean([j.seconds[name] for j in judged[1:] or judged])) for name in judged[0].seconds}
    lines.append("CPU time of a candidate: " + ", ".join(f"{name} {value:.0f} ms" for name, value in parts.items()))
    if savings:
        lines.append(f"{'with retry':<24}{'places':>7}{'accepted':>9}{'candidates':>11}{'screened':>9}{'CPU s':>8}{'s an accepted':>15}")
    for arm in savings:
        figures = f"{arm.places:>7}{arm.accepted:>9}{arm.candidates:>11}{arm.screened:>9}{arm.cpu_seconds:>8.1f}"
        lines.append(f"{arm.arm:<24}{figures}{arm.seconds_per_accepted:>15.3f}")
    if savings:
        lines.append(f"{same} of {savings[0].places} places gave the same image, bit by bit, in all arms")
    return "\n".join(lines)


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--screen", default="tiny", help="a source of LatentValidated's screen=")
    parser.add_argument("--validator", default="tiny")
    parser.add_argument("--n", type=int, default=48, help="places in breast ultrasound; a third of it in each other data set")
    parser.add_argument("--n-retry", type=int, default=32, help="places of the comparison with retry")
    parser.add_argument("--min-screen-dice", type=float, default=Screen.min_dice, help="least Dice of the comparison")
    parser.add_argument("--after", type=float, default=Screen.after, help="share of the steps after which the screen looks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sampler = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    models = {"screen": args.screen, "model": args.model, "validator": args.validator}
    common: dict[str, Any] = {**models, "after": args.after, "seed": args.seed, **sampler}
    judged: list[Judged] = []
    for source in (FREE, *OTHERS):
        judged += judge(places_of(source, args.n if source == FREE else args.n // 3, args.seed), source, **common)
    rows = rows_of(judged)
    savings: list[Saving] = []
    same = 0
    if args.n_retry:
        places = places_of(FREE, args.n_retry, args.seed + 1)
        savings, same = saving(places, min_screen_dice=args.min_screen_dice, **common)
    sys.stdout.write(
        f"validation groups, seed {args.seed}, {args.steps} steps, guidance {args.guidance_scale:g}, screen {args.screen} "
        f"after {args.after:g} of the steps\n"
        f"{table(judged, rows, savings, same)}\n"
    )
    figures = {
        "settings": {**vars(args), "out": str(args.out)},
        "auc": auc(judged),
        "auc_at_end": auc(judged, [j.dice_at_end for j in judged]),
        "threshold": threshold_that_keeps(judged),
        "rows": [asdict(row) for row in rows],
        "savings": [{**asdict(arm), "cpu_seconds_per_accepted": arm.seconds_per_accepted} for arm in savings],
        "same_images": same,
        "judged": [asdict(j) for j in judged],
    }
    write_json(figures, args.out)


if __name__ == "__main__":
    main()
