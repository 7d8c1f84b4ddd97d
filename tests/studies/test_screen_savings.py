"""What the study of the latent screen counts, and that its command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.latent_screen import ScreenConfig, ScreenNetwork, save_latent_screen, vae_fingerprint
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies import screen_savings as study
from monai_diffaug.studies.screen_savings import Judged, auc, rows_of, threshold_that_keeps

SECONDS = {"sampling": 1.0, "screening": 0.1, "decoding": 0.2, "validating": 0.3}


def judged(*pairs: tuple[float, bool]) -> list[Judged]:
    return [Judged("breast_ultrasound", i, dice, 1 - dice, accepted, 0.5, SECONDS) for i, (dice, accepted) in enumerate(pairs)]


def test_the_area_under_the_curve_is_the_chance_of_the_right_order() -> None:
    assert auc(judged((0.9, True), (0.8, True), (0.3, False))) == 1
    assert auc(judged((0.9, False), (0.3, True))) == 0
    assert auc(judged((0.5, True), (0.5, False))) == 0.5
    assert auc(judged((0.9, True), (0.4, True), (0.6, False), (0.2, False))) == 0.75
    assert np.isnan(auc(judged((0.9, True))))
    mixed = judged((0.9, True), (0.3, False))
    assert auc(mixed, [one.dice_at_end for one in mixed]) == 0


def test_a_least_dice_keeps_the_accepted_above_it_and_catches_the_rejected_below() -> None:
    sample = judged((0.9, True), (0.7, True), (0.5, True), (0.3, True), (0.6, False), (0.1, False))
    low, middle, high = rows_of(sample, (0.3, 0.55, 0.95))
    assert (low.kept.value, low.caught.value) == (1, 0.5)
    assert (middle.kept.value, middle.caught.value) == (0.5, 0.5)
    assert (high.kept.value, high.caught.value) == (0, 1)


def test_the_threshold_is_the_highest_that_keeps_enough() -> None:
    sample = judged(*[(0.5 + 0.02 * i, True) for i in range(20)], (0.95, False))
    assert threshold_that_keeps(sample) == 0.5 and threshold_that_keeps(sample, kept=0.5) == 0.7
    assert threshold_that_keeps(judged((0.9, False))) == 0


def test_what_is_painted_has_a_place_and_the_words_of_its_data_set(real_data: Path) -> None:
    for source, word in (("breast_ultrasound", "mass"), ("colonoscopy_polyp", "endoscopy of colon, polyp")):
        places = study.places_of(source, 2, 0)
        assert len(places) == 2 and all(word in prompt and bool(region.mask.any()) for region, prompt in places)


def test_a_screen_that_passes_everything_gives_the_same_images_and_one_that_passes_nothing_none(
    real_data: Path, random_inpainter: str
) -> None:
    def everything(latents: Tensor) -> Tensor:
        return torch.full_like(latents[:, :1], 9.0)

    places = study.places_of("breast_ultrasound", 2, 0)
    options = {"model": random_inpainter, "num_inference_steps": 1, "validator": lambda images: torch.ones_like(images[:, :1])}
    (plain, *screened), same = study.saving(places, screen=everything, min_screen_dice=0.0, **options)
    assert same == 2 and plain.cpu_seconds > 0 and plain.screened == 0
    assert all((arm.accepted, arm.candidates, arm.screened) == (plain.accepted, plain.candidates, 0) for arm in screened)
    (_, *refusing), _ = study.saving(places, screen=lambda z: -everything(z), min_screen_dice=0.1, **options)
    assert all(arm.accepted == 0 and arm.screened == arm.candidates == 6 for arm in refusing)


def test_the_command_prints_both_tables_and_writes_them(
    real_data: Path, random_inpainter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu")).vae
    save_latent_screen(ScreenNetwork(ScreenConfig(channels=8, vae_fingerprint=vae_fingerprint(vae))), tmp_path / "screen")
    monkeypatch.setattr(study, "OTHERS", ("colonoscopy_polyp",))
    out = tmp_path / "figures.json"
    options = ["--model", random_inpainter, "--screen", str(tmp_path / "screen"), "--steps", "1", "--n", "3", "--n-retry", "1"]
    monkeypatch.setattr(sys, "argv", ["latent_screen", *options, "--out", str(out)])
    study.main()
    printed, figures = capsys.readouterr().out, json.loads(out.read_text())
    assert "accepted ones that pass" in printed and "s an accepted" in printed
    assert len(figures["judged"]) == 4 and len(figures["rows"]) == len(study.THRESHOLDS) and len(figures["savings"]) == 3
