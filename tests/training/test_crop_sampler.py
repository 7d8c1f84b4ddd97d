from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_diffaug.training import counterfeits
from monai_diffaug.training.crop_sampler import CropSampler
from monai_diffaug.training.crops import grown
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import LabelledSlice, load_slices
from monai_diffaug.training.run_settings import TrainingInputError


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


@pytest.fixture(scope="module")
def two_sets(slices):
    """Three lesions in one data set, one lesion in another, and a set of images with a finding that has no outline."""
    lesions = [replace(s, dataset="large") for s in slices if s.has_lesion]
    chest = {"modality": "x-ray", "anatomy": "chest", "finding": "pneumonia", "dataset": "chest"}
    return [*lesions, replace(lesions[0], dataset="small"), *(replace(s, **chest) for s in slices if s.is_normal)]


def test_lesions_lie_under_their_mask_and_normal_crops_show_none(slices):
    sampler = CropSampler(slices, 48, seed=0)
    crops = [sampler.draw() for _ in range(60)]
    assert 0.5 < np.mean([crop.has_lesion for crop in crops]) < 0.9
    for crop in crops:
        assert crop.image.shape == (3, 48, 48) and crop.image.abs().max() <= 1
        inside = float(crop.image.mean(0, keepdim=True)[crop.mask > 0].mean())
        assert inside > 0.2 if crop.has_lesion else inside < 0
        assert ("normal tissue" in crop.caption) != crop.has_lesion


def test_captions_name_what_is_measured(slices):
    sampler = CropSampler(slices, 48, seed=0, normal_share=0)
    text = " ".join(sampler.draw().caption for _ in range(30))
    assert "hyperechoic" in text and "hypoechoic" not in text and "benign mass" in text


def test_a_prompt_is_the_caption_of_lesions_alone(slices):
    prompted = [replace(s, prompt="my words", modality="", anatomy="") for s in slices if s.has_lesion]
    sampler = CropSampler(prompted, 48, seed=0)
    assert {crop.caption for crop in (sampler.draw() for _ in range(30))} == {"my words", "normal tissue"}


def test_a_finding_without_an_outline_is_the_caption_of_free_shapes(two_sets):
    sampler = CropSampler(two_sets, 32, seed=0, shares={"chest": 1.0})
    for _ in range(10):
        crop = sampler.draw()
        assert not crop.has_lesion and "pneumonia" in crop.caption and crop.mask.any()


def test_data_sets_are_drawn_equally_often_whatever_their_size(two_sets):
    sampler = CropSampler(two_sets, 16, seed=0)
    counts = Counter(sampler.draw().origin.dataset for _ in range(300))
    assert all(70 < counts[name] < 130 for name in ("large", "small", "chest"))


def test_a_named_data_set_has_its_share_and_the_rest_share_equally(two_sets):
    sampler = CropSampler(two_sets, 16, seed=0, shares={"small": 0.6})
    counts = Counter(sampler.draw().origin.dataset for _ in range(300))
    assert 150 < counts["small"] < 210 and all(40 < counts[name] < 85 for name in ("large", "chest"))
    only = CropSampler(two_sets, 16, seed=0, shares={"large": 0.25, "small": 0.75})
    assert "chest" not in {only.draw().origin.dataset for _ in range(60)}
    lesions = Counter(only.draw_lesion().dataset for _ in range(200))
    assert 120 < lesions["small"] < 180


@pytest.mark.parametrize(
    ("shares", "message"),
    [({"breasts": 0.5}, "no data set 'breasts' in the datalist; its entries name chest, large, small"), ({"small": 1.2}, "no more than 1")],
)
def test_shares_that_cannot_be_drawn_are_refused(two_sets, shares, message):
    with pytest.raises(TrainingInputError, match=message):
        CropSampler(two_sets, 16, seed=0, shares=shares)


def test_the_same_seed_draws_the_same_crops(slices):
    first, second, other = (CropSampler(slices, 32, seed=s).draw_batch(4) for s in (3, 3, 4))
    assert torch.equal(first.images, second.images) and first.captions == second.captions
    assert not torch.equal(first.images, other.images)


def test_the_hidden_part_is_the_mask_grown_by_up_to_three_pixels(slices):
    batch = CropSampler(slices, 48, seed=0).draw_batch(30)
    assert bool((batch.hidden >= batch.masks).all())
    radii = [next(r for r in range(5) if torch.equal(grown(m, r), h)) for m, h in zip(batch.masks, batch.hidden, strict=True)]
    assert set(radii) == {0, 1, 2, 3}


def test_whole_crops_are_hidden_whole_and_show_more(slices):
    sampler = CropSampler(slices, 32, seed=0, whole_share=0.5)
    batch = sampler.draw_batch(60)
    is_whole = torch.tensor([crop.is_whole for crop in batch.crops])
    assert 0.3 < float(is_whole.float().mean()) < 0.7
    assert torch.equal(batch.hidden.amin((1, 2, 3)) == 1, is_whole)
    area = batch.masks.mean((1, 2, 3))
    assert float(area[is_whole].mean()) < float(area[~is_whole].mean())


def test_the_masks_of_lesions_are_empty_on_normal_tissue(slices):
    batch = CropSampler(slices, 32, seed=0).draw_batch(40)
    assert torch.equal(batch.lesions.amax((1, 2, 3)) > 0, torch.tensor([crop.has_lesion for crop in batch.crops]))


def test_counterfeits_change_normal_tissue_at_the_outline_and_nothing_else(slices, monkeypatch):
    monkeypatch.setattr(counterfeits, "CHANCES", {"flat": 0.5, "relit": 0.5})
    monkeypatch.setattr(counterfeits, "ASTRAY_SHARE", 0.0)
    plain, counterfeit = (CropSampler(slices, 48, seed=1, normal_share=1.0, counterfeit_share=share).draw() for share in (0.0, 1.0))
    change = (plain.image - counterfeit.image).abs().amax(0)
    far = torch.nn.functional.max_pool2d(plain.mask, 25, 1, 12)[0] == 0
    assert not plain.has_lesion and torch.equal(plain.mask, counterfeit.mask)
    assert float(change[plain.mask[0] > 0].max()) > 0.02 and float(change[far].max()) < 1e-5


def test_foreign_lesions_are_of_another_data_set_and_no_finding(two_sets):
    sampler = CropSampler(two_sets, 32, seed=0, normal_share=1.0, counterfeit_share=1.0)
    square, mask = sampler._foreign_lesion("large")
    assert square.shape == (3, 32, 32) and mask.shape == (1, 32, 32) and 0 < float(mask.mean()) < 1
    assert not [crop for crop in sampler.draw_batch(20).crops if crop.has_lesion and crop.origin.dataset == "chest"]


def test_a_hidden_lesion_is_none_and_a_disguised_one_stays(slices):
    options = {"normal_share": 0.0, "seed": 3, "size_px": 48}
    plain = CropSampler(slices, **options).draw()
    hidden, disguised = CropSampler(slices, cover_share=1.0, **options).draw(), CropSampler(slices, disguise_share=1.0, **options).draw()
    assert plain.has_lesion and disguised.has_lesion and not hidden.has_lesion
    inside = plain.mask > 0
    for changed in (hidden, disguised):
        assert torch.equal(changed.mask, plain.mask)
        assert float((changed.image - plain.image).mean(0, keepdim=True)[inside].abs().mean()) > 0.005


def test_crops_are_moved_into_the_slice():
    ramp = torch.linspace(-1, 1, 72).expand(1, 72, 72)
    corner = np.zeros((72, 72), bool)
    corner[:12, :12] = True
    slices = [LabelledSlice(ramp, corner, corner, "mass", "ct", "brain", "", "")]
    offsets = {}
    for share in (0.0, 1.0):
        sampler = CropSampler(slices, 32, seed=0, normal_share=0.0, inside_share=share)
        masks = sampler.draw_batch(20).masks
        offsets[share] = float(masks[..., :16, :].sum() / masks.sum())
    assert offsets[1.0] > offsets[0.0] + 0.05  # the square ends at the border, so that the lesion lies in its upper half


def test_blurred_crops_have_less_texture(slices):
    plain, soft = (CropSampler(slices, 48, seed=1, normal_share=1.0, blur_share=share).draw() for share in (0.0, 1.0))
    assert float(soft.image.diff(dim=-1).std()) < 0.9 * float(plain.image.diff(dim=-1).std())


def test_crops_from_anywhere_need_no_lesion_and_cover_the_slice(slices):
    ramp = torch.linspace(-1, 1, 72).expand(1, 72, 72)
    empty = np.zeros((72, 72), bool)
    sampler = CropSampler([LabelledSlice(ramp, empty, empty, "normal tissue", "ct", "brain", "", "")], 16, 0, needs_lesion=False)
    crops = [sampler.draw_anywhere() for _ in range(60)]
    assert all(crop.shape == (3, 16, 16) and float(crop.abs().max()) <= 1 for crop in crops)
    means = [float(crop.mean()) for crop in crops]
    assert min(means) < -0.3 and max(means) > 0.3
    spans = [float(crop.max() - crop.min()) for crop in crops]
    small = [float(crop.max() - crop.min()) for crop in (sampler.draw_anywhere(scale=0.5) for _ in range(60))]
    assert np.mean(small) < 0.7 * np.mean(spans)


def test_a_lesion_of_the_same_anatomy_lends_its_caption(two_sets):
    sampler = CropSampler(two_sets, 16, seed=0)
    breast, chest = two_sets[0], two_sets[-1]
    assert "benign mass" in sampler.lesion_caption(breast) and sampler.lesion_caption(chest) is None


def test_a_large_slice_is_averaged_not_sampled():
    stripes = torch.ones(1, 800, 800)
    stripes[..., ::2] = -1
    lesion = np.zeros((800, 800), bool)
    lesion[100:700, 100:700] = True
    sampler = CropSampler([LabelledSlice(stripes, lesion, lesion, "mass", "ct", "brain", "", "")], 32, 0, normal_share=0)
    assert float(sampler.draw().image[:, 8:24, 8:24].std()) < 0.1


def test_without_a_lesion_there_is_nothing_to_learn(slices):
    with pytest.raises(TrainingInputError, match="no image shows a lesion"):
        CropSampler([s for s in slices if s.is_normal], 32, 0)


def test_crops_are_the_same_whether_slices_are_kept_as_stored_or_as_shown(slices):
    shown = [replace(s, stored=s.image, window=None) for s in slices]
    first, second = (CropSampler(each, 32, seed=3).draw_batch(16) for each in (slices, shown))
    assert slices[0].stored.dtype == torch.uint8
    assert torch.equal(first.images, second.images) and torch.equal(first.hidden, second.hidden) and first.captions == second.captions
