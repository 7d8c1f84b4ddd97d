from __future__ import annotations

import pytest
import torch

from monai_diffaug.studies import finding_classifier
from monai_diffaug.studies.finding_classifier import ClassifierSettings, FindingCropSampler, load_or_train, predict
from monai_diffaug.studies.study_images import StudyInputError

FINDINGS = ("benign mass", "malignant mass")


def test_the_classes_are_drawn_alike_and_crops_of_normal_tissue_hold_no_lesion(breast):
    sampler = FindingCropSampler(breast, ClassifierSettings(FINDINGS, size_px=32), "validation")
    crops, classes = sampler.draw(12)
    assert crops.shape == (12, 1, 32, 32) and torch.bincount(classes).tolist() == [4, 4, 4]
    assert float(crops.min()) >= -1 and float(crops.max()) <= 1
    labels = {image.index: image.labelled for image in breast.images()}
    for _ in range(5):
        tissue = sampler._normal()
        assert tissue.mask.any() and not (tissue.mask_hw & labels[tissue.index]).any()


def test_a_finding_that_the_data_do_not_show_is_named(breast):
    with pytest.raises(StudyInputError, match="shows no cyst"):
        FindingCropSampler(breast, ClassifierSettings(("benign mass", "cyst")), "validation")


@pytest.mark.slow
def test_the_classifier_learns_and_is_kept_until_the_settings_change(user_datalist, tmp_path, monkeypatch):
    data = finding_classifier.StudyData.open(user_datalist)
    settings = ClassifierSettings(("benign nodule", "malignant nodule"), steps=60, batch_size=9, size_px=24)
    file = tmp_path / "c.safetensors"
    state = torch.get_rng_state()
    network = load_or_train(data, settings, file)
    assert torch.equal(torch.get_rng_state(), state)
    crops, classes = FindingCropSampler(data, ClassifierSettings(settings.findings, size_px=24, seed=5), "validation").draw(48)
    chances = predict(network, crops)
    assert torch.allclose(chances.sum(1), torch.ones(48), atol=1e-5)
    assert torch.allclose(predict(network, crops.flip(-1)), chances, atol=1e-5)
    assert (chances.argmax(1) == classes).float().mean() > 0.6
    monkeypatch.setattr(finding_classifier, "train_classifier", lambda data, settings: pytest.fail("trained again"))
    assert torch.equal(predict(load_or_train(data, settings, file), crops), chances)
    monkeypatch.setattr(finding_classifier, "train_classifier", lambda data, settings: finding_classifier._network(3).eval())
    other = ClassifierSettings(settings.findings, steps=1)
    assert not torch.equal(predict(load_or_train(data, other, file), crops), chances)
