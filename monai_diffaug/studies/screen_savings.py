"""Cost and benefit of refusing candidates by their latents.

First, how well the screen predicts the full validator's verdict: lesions are painted into validation images (in a data set with normal
images into free places, in the others over real lesions, with the finding's own prompt), one candidate per place; each is screened during
sampling (at the clean latents predicted after a share of the steps) and at the end, decoded and judged. Printed for several thresholds:
of the candidates that the validator accepts, the share that passes the screen; of those that it rejects, the share caught undecoded.

Then, what it saves: the same places and seeds through ``LatentValidated(on_reject="retry")`` without the screen and with it, looking
during sampling or at the end, in CPU seconds of the process per accepted sample.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffaug.edit.denoise import Candidate, Look
from monai_diffaug.edit.screening import CandidateScreen
from monai_diffaug.edit.validation_options import Screen
from monai_diffaug.prompts import compose_prompt
from monai_diffaug.studies.bootstrap import Interval, interval
from monai_diffaug.studies.downstream_tasks import auc as ranking_auc
from monai_diffaug.studies.masked_images import MaskedImage, free_places, lesions_of, real_lesions
from monai_diffaug.studies.painter import Painter
from monai_diffaug.studies.report import run_study, study_parser
from monai_diffaug.studies.study_images import StudyData
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

__all__ = ["Row", "Saving", "ScreenedCandidate", "auc", "judge", "places_of", "rows_of", "saving", "threshold_that_keeps"]

DATASETS = ("breast_ultrasound", "colonoscopy_polyp", "endoscopy_disease", "brain_mri_tumour", "fundus_disc_cup", "spleen_ct")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
KEPT = 0.95  # share of the candidates that the validator would accept that has to pass

Place = tuple[MaskedImage, str]
"""An image with the mask that is painted, and the prompt."""


@dataclass(frozen=True)
class ScreenedCandidate:
    """Verdicts of screen and validator on one candidate."""

    dataset: str
    group: int  # of the image
    dice: float  # of the mask and the screen's prediction during sampling
    dice_at_end: float  # the same of the finished latents
    accepted: bool  # the full validator's verdict
    score: float  # the full validator's Dice
    seconds: dict[str, float]  # CPU time of "sampling", "screening", "decoding" and "validating" it


@dataclass(frozen=True)
class Row:
    """The effect of a threshold: share of the accepted that pass, and of the rejected that are caught."""

    min_dice: float
    kept: Interval
    caught: Interval


@dataclass(frozen=True)
class Saving:
    """One arm of the comparison: sums over all places."""

    arm: str
    places: int
    accepted: int
    candidates: int
    screened: int  # candidates that were refused undecoded
    cpu_seconds: float
    cpu_seconds_per_accepted: float


def places_of(data: StudyData, n: int, seed: int) -> list[Place]:
    """``n`` places in one data set: free ones, with the findings in turn, or real lesions (or all there are)."""
    if data.is_mixed:
        words = data.finding_words
        return [(place, place.prompt_for(words[i % len(words)])) for i, place in enumerate(free_places(data, n, seed=seed))]
    return [(lesion, compose_prompt(lesion.modality, lesion.anatomy, lesion.finding)) for lesion in real_lesions(data, n, seed=seed)]


def judge(
    places: Sequence[Place], dataset: str, painter: Painter, *, screen: Any = "tiny", after: float = Screen.after, validator: Any = "tiny"
) -> list[ScreenedCandidate]:
    """One candidate per place, screened after a share of the steps and at the end, decoded and judged, whatever the screen says."""
    inpaint, validate, judge_latents = painter.transform(), LatentValidate(validator, device="cpu"), CandidateScreen(Screen(screen))
    network, judged, scores = inpaint.inpainter_on(torch.device("cpu")), [], list[float]()

    def pass_all(candidate: Candidate) -> bool:
        scores.append(judge_latents.score(network, candidate))
        return True

    for i, (place, prompt) in enumerate(places):
        seed = painter.seed + i
        clock = [time.process_time()]
        (sampled,) = inpaint.denoise_batch([place.image], [place.mask], [prompt], seeds=[seed], look=Look(after, pass_all))
        if not isinstance(sampled.outcome, Candidate):
            raise RuntimeError(f"nothing was painted into image {place.index} of {dataset}: {sampled.outcome.reason}")
        clock.append(time.process_time())
        at_end = judge_latents.score(network, sampled.outcome)
        clock.append(time.process_time())
        (edit,) = inpaint.finish_batch([sampled])
        clock.append(time.process_time())
        verdict = validate(edit.image, place.mask, place.image, seed=seed)
        clock.append(time.process_time())
        seconds = dict(zip(("sampling", "screening", "decoding", "validating"), np.diff(clock).tolist(), strict=True))
        judged.append(ScreenedCandidate(dataset, place.group, scores[-1], at_end, verdict.accepted, verdict.score, seconds))
    return judged


def auc(judged: Sequence[ScreenedCandidate], dice: Sequence[float] | None = None) -> float:
    """ROC AUC, for the label "accepted", of the Dice during sampling, or of another one per candidate; nan where all have one label."""
    return ranking_auc([j.dice for j in judged] if dice is None else dice, [int(j.accepted) for j in judged])


def rows_of(judged: Sequence[ScreenedCandidate], thresholds: Sequence[float] = THRESHOLDS) -> list[Row]:
    """A row per threshold of the look during sampling, with 95 % intervals over the images."""
    dice, accepted = np.array([j.dice for j in judged]), np.array([j.accepted for j in judged])
    groups = [f"{j.dataset} {j.group}" for j in judged]

    def share(passes: NDArray[np.bool_], among: NDArray[np.bool_]) -> Interval:
        among_them = np.where(among, passes.astype(float), np.nan)
        return interval(lambda picks: float(np.nanmean(among_them[picks])) if among[picks].any() else float("nan"), groups)

    return [Row(least, share(dice >= least, accepted), share(dice < least, ~accepted)) for least in thresholds]


def threshold_that_keeps(judged: Sequence[ScreenedCandidate], kept: float = KEPT) -> float:
    """The highest threshold, in steps of 0.05, that lets ``kept`` of the accepted candidates pass; 0 when none is accepted."""
    accepted = np.array([j.dice for j in judged if j.accepted])
    steps = [round(0.05 * i, 2) for i in range(20)]
    return max((step for step in steps if len(accepted) and float((accepted >= step).mean()) >= kept), default=0.0)


def saving(
    places: Sequence[Place], painter: Painter, screen: Screen, *, validator: Any = "tiny", max_tries: int = 3
) -> tuple[list[Saving], int]:
    """All arms, place by place in turn, after one place to warm up; and the number of places with bit-identical images in all arms.

    ``screen`` looks during sampling; a further arm looks at the end.
    """
    steps, guidance_scale = painter.num_inference_steps, painter.guidance_scale
    inpaint = DiffusionLocalInpaintd("image", model=painter.model, num_inference_steps=steps, guidance_scale=guidance_scale, device="cpu")
    common: dict[str, Any] = {"model": validator, "inpaint": inpaint, "on_reject": "retry", "max_tries": max_tries, "device": "cpu"}
    arms = {
        "no screen": LatentValidated("image", **common),
        "screen on the way": LatentValidated("image", screen=screen, **common),
        "screen at the end": LatentValidated("image", screen=Screen(screen.source, screen.min_dice, 1.0), **common),
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
            images.append(torch.as_tensor(arms[name].set_random_state(painter.seed + i)(sample)["image"]))
            spent[name] += (time.process_time() - start) * (i > 0)
        same += int(i > 0 and all(torch.equal(images[0], image) for image in images[1:]))
    savings = []
    for name, arm in arms.items():
        n = arm.statistics
        per_accepted = spent[name] / n["accepted"] if n["accepted"] else float("nan")
        candidates, screened = len(places) + n["retried"], n.get("screened", 0)
        savings.append(Saving(name, len(places), n["accepted"], candidates, screened, spent[name], per_accepted))
    return savings, same


def table(judged: Sequence[ScreenedCandidate], rows: Sequence[Row], savings: Sequence[Saving], same: int) -> str:
    """Predictions of the screen, cost of a candidate, and savings."""
    lines = [f"{'candidates':<22}{'n':>5}{'accepted':>10}{'AUC':>8}{'at the end':>12}"]
    for name in (*dict.fromkeys(j.dataset for j in judged), "all"):
        of_set = [j for j in judged if name in (j.dataset, "all")]
        at_end = auc(of_set, [j.dice_at_end for j in of_set])
        lines.append(f"{name:<22}{len(of_set):>5}{sum(j.accepted for j in of_set):>10}{auc(of_set):>8.3f}{at_end:>12.3f}")
    lines.append(f"{'least Dice':<12}{'accepted ones that pass':<26}{'rejected ones caught undecoded':<32}")
    lines += [f"{row.min_dice:<12.2f}{row.kept!s:<26}{row.caught!s:<32}" for row in rows]
    lines.append(f"{100 * KEPT:.0f} % of the accepted pass up to a least Dice of {threshold_that_keeps(judged):.2f}")
    parts = {name: 1000 * float(np.mean([j.seconds[name] for j in judged[1:] or judged])) for name in judged[0].seconds}
    lines.append("CPU time of a candidate: " + ", ".join(f"{name} {value:.0f} ms" for name, value in parts.items()))
    if savings:
        lines.append(f"{'with retry':<24}{'places':>7}{'accepted':>9}{'candidates':>11}{'screened':>9}{'CPU s':>8}{'s per accepted':>15}")
    for arm in savings:
        figures = f"{arm.places:>7}{arm.accepted:>9}{arm.candidates:>11}{arm.screened:>9}{arm.cpu_seconds:>8.1f}"
        lines.append(f"{arm.arm:<24}{figures}{arm.cpu_seconds_per_accepted:>15.3f}")
    if savings:
        lines.append(f"{same} of {savings[0].places} places gave bit-identical images in all arms")
    return "\n".join(lines)


def _study(options: argparse.Namespace, data: StudyData) -> tuple[str, dict[str, Any]]:
    torch.set_num_threads(1)
    painter, n, after = Painter.of(options), options.n, options.after
    real_lesions(data)  # raises where there is none
    parts = {name: data.only(name) for name in data.datasets if lesions_of(data.only(name).images())}
    free = next((part for part in parts.values() if part.is_mixed), None)
    judged: list[ScreenedCandidate] = []
    for name, part in parts.items():
        places = places_of(part, n if part.is_mixed else n // 3, options.seed)
        judged += judge(places, name, painter, screen=options.screen, after=after, validator=options.validator)
    rows = rows_of(judged)
    savings: list[Saving] = []
    same = 0
    if options.n_retry and free is not None:
        screen = Screen(options.screen, options.min_screen_dice, after)
        savings, same = saving(places_of(free, options.n_retry, options.seed + 1), painter, screen, validator=options.validator)
    heading = f"validation groups, {painter}, screen {options.screen} after {after:g} of the steps"
    figures: dict[str, Any] = {
        "auc": auc(judged),
        "auc_at_end": auc(judged, [j.dice_at_end for j in judged]),
        "threshold": threshold_that_keeps(judged),
    }
    figures |= {"rows": rows, "savings": savings, "same_images": same, "judged": judged}
    return f"{heading}\n{table(judged, rows, savings, same)}", figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study_parser(__doc__)
    parser.add_argument("--screen", default="tiny", metavar="SOURCE", help="of the latent screen")
    parser.add_argument("--validator", default="tiny", metavar="SOURCE")
    parser.add_argument("--n", type=int, default=48, help="places in a data set with normal images; a third of it in each other data set")
    parser.add_argument("--n-retry", type=int, default=32, help="places of the comparison with retry, for which normal images are needed")
    parser.add_argument("--min-screen-dice", type=float, default=Screen.min_dice, help="threshold of the comparison")
    parser.add_argument("--after", type=float, default=Screen.after, help="share of the steps after which the screen looks")
    return run_study(parser, _study, arguments, needs="labelled lesions", preferred=DATASETS)
