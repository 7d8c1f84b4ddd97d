from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.studies.regions import MIN_AREA_PX, crop_of, free_places, real_lesions
from monai_diffaug.training.embedded.datasets import load_samples


def test_lesions_are_whole_connected_parts_of_validation_labels(real_data):
    from scipy.ndimage import label

    labels = {sample.index: sample.label > 0 for sample in load_samples("breast_ultrasound", "validation")}
    lesions = real_lesions(6)
    assert len(lesions) == 6
    for lesion in lesions:
        mask = lesion.mask[0].numpy() > 0
        assert mask.sum() >= MIN_AREA_PX and label(mask)[1] == 1 and not (mask & ~labels[lesion.index]).any()
    assert [r.index for r in real_lesions(6, seed=1)] != [r.index for r in lesions]
    assert len(real_lesions()) > len(real_lesions(6)) and not {r.group for r in real_lesions(split="train")} & {r.group for r in lesions}


def test_places_lie_on_tissue_of_normal_images_that_take_turns(real_data):
    normal = {sample.index for sample in load_samples("breast_ultrasound", "validation") if not sample.label.any()}
    places = free_places(8)
    assert len({place.index for place in places}) >= 7 and {place.index for place in places} <= normal
    assert all(place.image[:, place.mask[0] > 0].float().mean() > 8 for place in places)
    again = free_places(8)
    assert all(torch.equal(a.mask, b.mask) and a.index == b.index for a, b in zip(places, again, strict=True))


def test_a_data_set_without_normal_images_has_no_places(real_data):
    with pytest.raises(ValueError, match="0 normal images"):
        free_places(1, source="colonoscopy_polyp")


def test_the_outlines_can_be_those_of_one_finding(real_data, monkeypatch):
    from monai_diffaug.studies import regions

    lent = []
    borrow = regions.borrow_shape
    monkeypatch.setattr(regions, "borrow_shape", lambda rng, outline, scale: lent.append(outline) or borrow(rng, outline, scale))
    free_places(4, outlines_of="malignant mass")
    malignant = [r.mask[0].numpy() > 0 for r in real_lesions() if r.finding == "malignant mass"]
    assert lent and all(any(np.array_equal(outline, mask) for mask in malignant if mask.shape == outline.shape) for outline in lent)
    with pytest.raises(ValueError, match="0 lesions called 'polyp'"):
        free_places(1, outlines_of="polyp")


def test_the_square_of_an_edit_is_that_of_its_region(real_data):
    region = real_lesions(1)[0]
    square = crop_of(region, 64)
    assert square.shape == (1, 64, 64) and -1 <= float(square.min()) < float(square.max()) <= 1
    assert torch.equal(crop_of(region, 64, image=region.image), square)
    darker = crop_of(region, 64, image=torch.zeros_like(region.image))
    assert np.allclose(darker, -1)
