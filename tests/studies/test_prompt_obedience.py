from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from monai_diffaug.commands.cli import main
from monai_diffaug.studies import finding_classifier
from monai_diffaug.studies.finding_classifier import CLASSES, ClassifierSettings, FindingCropSampler, load_or_train, predict
from monai_diffaug.studies.prompt_obedience import PAINTED, PASTED, REAL, Verdict, effect, judge, paint, pasted_lesions, rows_of, table
from monai_diffaug.studies.regions import free_places, real_lesions

BENIGN, MALIGNANT, NORMAL = CLASSES
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


def painted(outline: str, asked: str, said: list[str], dice: float = 0.9) -> list[Verdict]:
    return [Verdict(PAINTED, outline, asked, group, name, dice) for group, name in enumerate(said)]


def test_counts_and_shares_of_known_verdicts():
    verdicts = painted(BENIGN, BENIGN, [BENIGN] * 3 + [MALIGNANT]) + painted(MALIGNANT, BENIGN, [MALIGNANT] * 4)
    verdicts += painted(BENIGN, NORMAL, [NORMAL] * 4, dice=0.1)
    verdicts += [Verdict(REAL, MALIGNANT, MALIGNANT, 0, MALIGNANT, 0.8)]
    rows = rows_of(verdicts)
    assert [(row.kind, row.outline, row.asked, row.n, row.images) for row in rows] == [
        (PAINTED, BENIGN, BENIGN, 4, 4),
        (PAINTED, MALIGNANT, BENIGN, 4, 4),
        (PAINTED, BENIGN, NORMAL, 4, 4),
        (REAL, MALIGNANT, MALIGNANT, 1, 1),
    ]
    assert rows[0].said == {BENIGN: 3, MALIGNANT: 1, NORMAL: 0} and rows[0].as_asked.value == 0.75
    assert [row.found.value for row in rows] == [1, 1, 0, 1] and rows[2].as_asked.value == 1
    printed = table(rows)
    assert "painted, outline as asked: a lesion 4/4, the one that was asked for 3/4" in printed
    assert "real, outline as asked: a lesion 1/1, the one that was asked for 1/1" in printed


def test_prompt_and_outline_have_effects_of_their_own():
    by_prompt = [v for o in (BENIGN, MALIGNANT) for asked in (BENIGN, MALIGNANT) for v in painted(o, asked, [asked] * 3)]
    assert effect(by_prompt, "asked").value == 1 and effect(by_prompt, "outline").value == 0
    by_outline = [v for o in (BENIGN, MALIGNANT) for asked in (BENIGN, MALIGNANT) for v in painted(o, asked, [o, o, NORMAL])]
    assert effect(by_outline, "asked").value == 0 and effect(by_outline, "outline").value == pytest.approx(2 / 3)
    uncounted = [*painted(BENIGN, NORMAL, [MALIGNANT] * 3), Verdict(REAL, BENIGN, BENIGN, 0, MALIGNANT, 0.9)]
    assert effect(by_prompt + uncounted, "asked").value == 1
    with pytest.raises(ValueError, match="'asked' or 'outline', got 'size'"):
        effect(by_prompt, "size")


def test_pasted_lesions_are_real_pixels_in_normal_images(real_data):
    places, real = free_places(2), real_lesions(2) + free_places(1)
    pasted = pasted_lesions(real, places)
    assert [r.finding for r in pasted] == [r.finding for r in real[:2]]
    for lesion, copy in zip(real, pasted, strict=False):
        inside = torch.nn.functional.max_pool2d(1 - copy.mask[None].float(), 9, 1, 4)[0] == 0
        assert inside.any() and torch.allclose(copy.image[inside].float(), lesion.image.float().mean(0, keepdim=True)[inside], atol=1)
        assert (copy.image - lesion.image.float().mean(0))[copy.mask == 0].abs().mean() > 5


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
    assert [row["n"] for row in stored["rows"]] == [2] * 11 and len(stored["verdicts"]) == 22
    assert {row["kind"] for row in stored["rows"]} == {PAINTED, PASTED, REAL} and set(stored["effects"]) == {"asked", "outline"}
    assert "by the prompt" in printed and "by the outline" in printed
    assert (tmp_path / "prompts.classifier.safetensors").is_file()
