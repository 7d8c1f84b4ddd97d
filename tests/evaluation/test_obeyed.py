from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from monai_diffaug.cli import main
from monai_diffaug.evaluation import finding_classifier
from monai_diffaug.evaluation.finding_classifier import CLASSES, ClassifierSettings, FindingCropSampler, load_or_train, predict
from monai_diffaug.evaluation.obeyed import PAINTED, REAL, Verdict, judge, paint, rows_of, table
from monai_diffaug.evaluation.regions import free_places

FAST = ClassifierSettings(steps=1, batch_size=3, size_px=32)


def test_the_classes_are_drawn_alike_and_crops_of_normal_tissue_hold_no_lesion(real_data):
    sampler = FindingCropSampler("train", ClassifierSettings(size_px=32))
    crops, classes = sampler.draw(12)
    assert crops.shape == (12, 1, 32, 32) and torch.bincount(classes).tolist() == [4, 4, 4]
    assert float(crops.min()) >= -1 and float(crops.max()) <= 1
    for _ in range(5):
        sample, mask = sampler._normal()
        assert mask.any() and not (mask & (sample.label > 0)).any()


def test_the_classifier_learns_and_is_kept_until_the_settings_change(real_data, tmp_path, monkeypatch):
    settings, file = ClassifierSettings(steps=50, batch_size=8, size_px=32), tmp_path / "c.safetensors"
    state = torch.get_rng_state()
    network = load_or_train(settings, file)
    assert torch.equal(torch.get_rng_state(), state)
    crops, classes = FindingCropSampler("validation", ClassifierSettings(size_px=32, seed=5)).draw(48)
    said = predict(network, crops)
    assert torch.allclose(said.sum(1), torch.ones(48), atol=1e-5) and torch.allclose(predict(network, crops.flip(-1)), said, atol=1e-5)
    assert (said.argmax(1) == classes).float().mean() > 0.4
    monkeypatch.setattr(finding_classifier, "train_classifier", lambda settings: pytest.fail("trained again"))
    assert torch.equal(predict(load_or_train(settings, file), crops), said)
    monkeypatch.setattr(finding_classifier, "train_classifier", lambda settings: finding_classifier._network().eval())
    assert not torch.equal(predict(load_or_train(FAST, file), crops), said)


def test_counts_and_shares_of_known_verdicts():
    verdicts = [Verdict(PAINTED, "benign mass", g, CLASSES[0] if g < 3 else CLASSES[1], 0.9) for g in range(4)]
    verdicts += [Verdict(PAINTED, "normal tissue", g, CLASSES[2], 0.1) for g in range(4)]
    verdicts += [Verdict(REAL, "malignant mass", 0, CLASSES[1], 0.8)]
    rows = rows_of(verdicts)
    assert [(row.kind, row.asked, row.n, row.images) for row in rows] == [
        (PAINTED, "benign mass", 4, 4),
        (PAINTED, "normal tissue", 4, 4),
        (REAL, "malignant mass", 1, 1),
    ]
    assert rows[0].said == {CLASSES[0]: 3, CLASSES[1]: 1, CLASSES[2]: 0} and rows[0].as_asked.value == 0.75
    assert rows[0].found.value == 1 and rows[1].found.value == 0 and rows[1].as_asked.value == 1
    assert "one of three 7/8, lesion or none 8/8, benign or malignant 3/4" in table(rows)


def test_both_judges_see_the_edit_and_not_the_image_before(real_data):
    places = free_places(2)

    def dark_is_benign(crops):
        dark = (crops.mean((1, 2, 3)) < -0.5).float()
        return torch.stack([dark, torch.zeros_like(dark), 1 - dark], 1) * 9

    black = [torch.where(p.mask > 0, 0, p.image // 8).to(torch.uint8) for p in places]
    said = [v.said for v in judge(dark_is_benign, 32, places, black, ["benign mass"] * 2, kind=PAINTED)]
    assert said == ["benign mass"] * 2
    white = [torch.full_like(p.image, 250) for p in places]
    assert [v.said for v in judge(dark_is_benign, 32, places, white, ["benign mass"] * 2, kind=PAINTED)] == ["normal tissue"] * 2


def test_the_prompt_is_all_that_differs_between_two_paintings(real_data, random_inpainter):
    places = free_places(1)
    benign, again, normal = (
        paint(places, finding, model=random_inpainter, num_inference_steps=1)[0]
        for finding in ("benign mass", "benign mass", "normal tissue")
    )
    assert torch.equal(benign, again) and not torch.equal(benign, normal)
    assert np.array_equal(benign[0, :8], places[0].image[0, :8])


def test_the_command_prints_the_confusion_table_and_keeps_the_classifier(real_data, random_inpainter, tmp_path, capsys):
    out = tmp_path / "prompts.json"
    command = ["evaluate", "prompts", "--n", "2", "--steps", "1", "--classifier-steps", "1", "--model", random_inpainter, "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "seed 0" in printed and printed.count("normal tissue") >= 2 and "says what was asked" in printed
    stored = json.loads(out.read_text())
    assert [row["n"] for row in stored["rows"]] == [2] * 6 and len(stored["verdicts"]) == 12
    assert (tmp_path / "prompts.classifier.safetensors").is_file()
