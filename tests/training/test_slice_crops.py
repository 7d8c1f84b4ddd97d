from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import LabelledSlice, load_slices
from monai_diffaug.training.run_settings import TrainingInputError
from monai_diffaug.training.slice_crops import SliceCropSampler


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


def test_lesions_lie_under_their_mask_and_normal_crops_show_none(slices):
    sampler = SliceCropSampler(slices, 48, seed=0)
    crops = [sampler.draw() for _ in range(60)]
    assert 0.1 < np.mean([crop.is_normal for crop in crops]) < 0.5
    for crop in crops:
        assert crop.image.shape == (3, 48, 48) and crop.image.abs().max() <= 1
        inside = float(crop.image.mean(0, keepdim=True)[crop.mask > 0].mean())
        assert inside < 0 if crop.is_normal else inside > 0.2
        assert ("normal tissue" in crop.caption) == crop.is_normal


def test_captions_name_what_is_measured(slices):
    sampler = SliceCropSampler(slices, 48, seed=0, normal_share=0)
    text = " ".join(sampler.draw().caption for _ in range(30))
    assert "hyperechoic" in text and "hypoechoic" not in text and "benign mass" in text


def test_a_given_prompt_is_the_caption_of_lesions_alone(slices):
    prompted = [replace(s, prompt="my words", modality="", anatomy="") for s in slices if not s.is_normal]
    sampler = SliceCropSampler(prompted, 48, seed=0)
    assert {crop.caption for crop in (sampler.draw() for _ in range(30))} == {"my words", "normal tissue"}


def test_the_same_seed_draws_the_same_crops(slices):
    first, second, other = (SliceCropSampler(slices, 32, seed=s).draw_batch(4) for s in (3, 3, 4))
    assert torch.equal(first[0], second[0]) and first[2] == second[2]
    assert not torch.equal(first[0], other[0])


def test_a_large_slice_is_averaged_not_sampled():
    stripes = torch.ones(1, 800, 800)
    stripes[..., ::2] = -1
    lesion = np.zeros((800, 800), bool)
    lesion[100:700, 100:700] = True
    sampler = SliceCropSampler([LabelledSlice(stripes, lesion, lesion, "mass", "ct", "brain", "", "")], 32, 0, normal_share=0)
    assert float(sampler.draw().image[:, 8:24, 8:24].std()) < 0.1


def test_without_a_lesion_there_is_nothing_to_learn(slices):
    with pytest.raises(TrainingInputError, match="no image shows a lesion"):
        SliceCropSampler([s for s in slices if s.is_normal], 32, 0)


def test_crops_are_the_same_whether_slices_are_kept_as_stored_or_as_shown(slices):
    shown = [replace(s, stored=s.image, window=None) for s in slices]
    first, second = (SliceCropSampler(kept, 32, seed=3).draw_batch(16) for kept in (slices, shown))
    assert slices[0].stored.dtype == torch.uint8
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1]) and first[2] == second[2]
