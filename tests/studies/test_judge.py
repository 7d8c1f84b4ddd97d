from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from monai_diffaug.models.validator import ValidatorModel
from monai_diffaug.studies.judge import FAKES, REAL, Judged, auc, figures_of, main, samples, table
from monai_diffaug.studies.masked_images import MaskedImage
from monai_diffaug.studies.study_images import StudyData, StudyInputError


class Everywhere(ValidatorModel):
    """Calls the whole crop a lesion."""

    size_px = 32

    def predict(self, images, generators):
        return torch.ones(len(images), 1, 32, 32)


@pytest.fixture(scope="module")
def listed(breast) -> list[tuple[str, str, MaskedImage]]:
    return list(samples(breast, 4, seed=0))


def test_every_lesion_comes_with_a_fake_of_each_kind(listed) -> None:
    counts = Counter(kind for kind, _, _ in listed)
    assert counts[REAL] == 4 and counts["flat patch"] == 4
    assert set(counts) == {REAL, *FAKES} - {"lesion of another organ"}  # there is one organ only


def test_fakes_are_what_they_are_called(listed, breast) -> None:
    originals = {image.index: image.image for image in breast.images()}
    for kind, _, one in listed:
        original, inside, outside = originals[one.index], one.mask_hw, ~one.mask_hw
        changed = (one.image != original).any(0).numpy()
        if kind in (REAL, "normal tissue"):
            assert torch.equal(one.image, original)
        else:
            assert changed[inside].mean() > 0.5 and changed[outside].mean() < 0.2
        if kind == "flat patch":
            assert float(one.image[0].numpy()[inside].std()) < 1
        if kind.startswith("normal tissue"):
            labelled = next(image.labelled for image in breast.images() if image.index == one.index)
            assert labelled[inside].mean() <= 0.05


def test_foreign_lesions_are_pasted_where_there_are_several_organs(packed) -> None:
    data = StudyData.open(packed("spleen_ct", "colonoscopy_polyp"))
    foreign = [one for kind, _, one in samples(data, 2) if kind == "lesion of another organ"]
    assert [len(one.image) for one in foreign] == [1, 1, 3, 3] or [len(one.image) for one in foreign] == [3, 3, 1, 1]


def test_the_samples_repeat_with_the_seed(breast, listed) -> None:
    again, other = list(samples(breast, 4, seed=0)), list(samples(breast, 4, seed=1))
    pairs = list(zip(listed, again, strict=True))
    assert all(torch.equal(a[2].image, b[2].image) and torch.equal(a[2].mask, b[2].mask) for a, b in pairs)
    assert not all(torch.equal(a[2].mask, b[2].mask) for a, b in zip(listed, other, strict=False))


def test_figures_of_known_verdicts() -> None:
    verdicts = [Judged(REAL, "a", "ct", g, g < 3, 0.5 + 0.1 * g) for g in range(4)]
    verdicts += [Judged(REAL, "b", "mri", g, True, 0.9) for g in range(2)]
    verdicts += [Judged("flat patch", "a", "ct", g, False, 0.0) for g in range(4)]
    figures = figures_of(verdicts, {"a": 0.6, "b": 0.8}, 0.1)
    assert figures.mean_dice == pytest.approx(0.7) and figures.accepted["flat patch"].value == 0
    assert figures.accepted_by_modality["ct"].value == 0.75 and figures.accepted_by_modality["mri"].n == 2
    assert figures.auc == {"flat patch": 1.0, "all": 1.0}
    text = table({"one": figures, "other": figures})
    assert "accepted, flat patch (n=4)" in text and text.count("0.700") == 2


def test_auc_is_a_half_of_equal_scores() -> None:
    assert auc([0.5, 0.5], [0.5]) == 0.5 and auc(np.array([0.2]), np.array([0.4])) == 0


@pytest.mark.slow
def test_two_validators_are_compared_on_the_same_samples(breast, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("monai_diffaug.transforms.latent_validate.load_validator", lambda *_: Everywhere())
    monkeypatch.setattr("monai_diffaug.studies.embedded_goals.load_validator", lambda *_: Everywhere())
    monkeypatch.setattr("monai_diffaug.studies.judge.lesion_dice", lambda *_, **__: {"breast_ultrasound": 0.25})
    monkeypatch.setattr("monai_diffaug.studies.judge.false_alarm_rate", lambda *_, **__: 1.0)
    out = tmp_path / "judge.json"
    assert main(["--data", str(breast.file), "--model", "one", "other", "--n", "2", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())["validators"]
    assert set(figures) == {"one", "other"} and figures["one"] == figures["other"]
    assert figures["one"]["accepted_by_modality"]["ultrasound"]["value"] == 0 and figures["one"]["auc"]["all"] < 0.9
    assert "false alarms on normal crops" in capsys.readouterr().out


def test_no_lesion_at_all_is_said(packed) -> None:
    with pytest.raises(StudyInputError, match="needs labelled lesions"):
        list(samples(StudyData.open(packed("chest_xray")), 1))
