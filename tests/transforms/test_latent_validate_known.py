"""Pre-existing findings next to the mask: neither hits nor false positives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, RandomizableTransform

from monai_diffaug.edit.record import DiffAugRecord
from monai_diffaug.edit.validation_options import Validator
from monai_diffaug.errors import GridMismatchError
from monai_diffaug.transforms.latent_validate import LatentValidate, labelled_elsewhere
from monai_diffaug.transforms.latent_validated import LatentValidated
from tests.transforms.judged import NEW, OLD, bright, disc


def generous(images):
    """Segments whatever is bright and five pixels around it."""
    return torch.nn.functional.max_pool2d(bright(images), 11, 1, 5)


MASK, NEIGHBOUR = disc(centre=(32, 26), radius=8), disc(centre=(32, 41), radius=5)  # one dark pixel lies between them
SPECK = disc(centre=(24, 34), radius=2)  # bright, in no finding


def picture(*lesions):
    image = torch.full((1, 64, 64), OLD)
    for lesion in lesions:
        image = torch.where(lesion > 0, NEW, image)
    return image


def judge(segmenter=bright, min_dice=0.7, **options):
    """Sees the whole picture at its own size."""
    whole = {"context": 4.0, "size_px": 64, "rim": 0.0, "box_margin": 0.5}
    return LatentValidate(segmenter, min_dice, window=(0, 1), options=Validator(**{**whole, **options}))


def test_a_known_finding_next_to_the_mask_is_neither_hit_nor_false_positive():
    alone = judge()(picture(MASK), MASK)
    without = judge()(picture(MASK, NEIGHBOUR), MASK)
    told = judge()(picture(MASK, NEIGHBOUR), MASK, known=NEIGHBOUR)
    assert alone.accepted and not without.accepted and "false positives" in without.reason and without.score < alone.score - 0.1
    assert told.accepted and told.false_positive == 0
    assert told.score == alone.score and told.coverage == alone.coverage and torch.equal(told.predicted, alone.predicted)


@pytest.mark.parametrize("known", [torch.zeros_like(MASK), MASK, disc(centre=(2, 2), radius=1)])
def test_a_label_with_nothing_next_to_the_mask_in_its_crop_changes_no_bit_of_a_verdict(known):
    class Noisy:
        size_px = 64

        def predict(self, images, generators):
            return torch.stack([torch.rand((1, 64, 64), generator=g) for g in generators])

    plain, told = (judge(Noisy(), context=1.0, min_side_px=16)(picture(MASK), MASK, seed=3, **given) for given in ({}, {"known": known}))
    assert 0 < plain.score < 1 and plain.false_positive > 0 and torch.equal(plain.predicted, told.predicted)
    assert (plain.score, plain.coverage, plain.false_positive) == (told.score, told.coverage, told.false_positive)


def test_a_rough_prediction_of_the_known_finding_belongs_to_it():
    mask, neighbour = disc(centre=(32, 20), radius=8), disc(centre=(32, 46), radius=8)
    image = picture(neighbour)

    def rough(images):  # the mask to the pixel, the known finding far too large
        return torch.maximum(generous(images), mask)

    options = {"rim": 0.03, "box_margin": 2.0}  # a band of two pixels
    told = judge(rough, **options)(image, mask, known=neighbour)
    assert judge(rough, **options)(image, mask).false_positive > 0.5
    assert told.accepted and told.score == 1 and told.false_positive == 0


def test_a_false_positive_that_is_on_no_known_finding_counts_as_ever():
    false = picture(MASK, SPECK)
    plain, told = judge()(false, MASK), judge()(picture(MASK, SPECK, NEIGHBOUR), MASK, known=NEIGHBOUR)
    assert 0 < told.false_positive == plain.false_positive and told.score == plain.score
    everything = judge(lambda images: torch.ones_like(images[:, :1]))(false, MASK, known=NEIGHBOUR)
    assert not everything.accepted and everything.false_positive > 0.5


def test_what_the_known_finding_adds_to_a_part_that_touches_the_mask_does_not_count():
    touching = disc(centre=(32, 43), radius=11)
    alone = judge(rim=0.03)(picture(MASK), MASK)
    without = judge(rim=0.03)(picture(MASK, touching), MASK)
    told = judge(rim=0.03)(picture(MASK, touching), MASK, known=touching)
    assert not without.accepted and told.accepted and told.score == pytest.approx(alone.score, abs=0.02)


def test_no_pixel_of_the_mask_is_lost_to_a_known_finding_that_shares_it_in_a_smaller_crop():
    mask, line = torch.zeros(2, 1, 256, 256)
    mask[..., :131], line[..., 131] = 1, 1  # one pixel of the crop is four: three of the mask, one of the line
    everything = LatentValidate(lambda images: torch.ones_like(images[:, :1]), window=(0, 1), options=Validator(size_px=64))
    alone, told = (everything(torch.zeros(1, 256, 256), mask, known=given) for given in (None, line))
    assert alone.coverage == told.coverage == 1


def test_a_lesion_that_was_not_painted_is_not_found_in_the_known_one():
    verdict = judge()(picture(NEIGHBOUR), MASK, known=NEIGHBOUR)
    assert not verdict.accepted and verdict.score == 0 and "found nothing" in verdict.reason


def test_a_known_finding_on_another_grid_is_named():
    with pytest.raises(GridMismatchError, match=r"known \(1, 32, 32\)"):
        judge()(picture(MASK), MASK, known=torch.ones(1, 32, 32))


def test_known_findings_of_a_volume_are_those_of_each_slice_in_the_plane_of_its_affine():
    affine = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # first voxel axis is superior
    mask, known = torch.zeros(1, 6, 64, 64), torch.zeros(1, 6, 64, 64)
    mask[:, 2:4] = MASK
    known[:, 3] = NEIGHBOUR
    image = torch.where(mask + known > 0, NEW, OLD)
    verdicts = [judge()(MetaTensor(image, affine=affine), mask, known=given) for given in (known, known.flip(1), None)]
    assert [verdict.accepted for verdict in verdicts] == [True, False, False]
    assert verdicts[1].score == verdicts[2].score  # slices 2 and 3 are flipped to each other


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_what_was_labelled_is_the_edits_value_outside_the_mask(kind):
    label = kind(np.array([[[1, 2, 2, 0]]], np.uint8))
    mask = kind(np.array([[[0, 0, 1, 0]]], np.uint16 if kind is np.asarray else np.uint8))
    elsewhere = labelled_elsewhere(label, mask, 2)
    assert elsewhere is not None and elsewhere.tolist() == [[[False, True, False, False]]]


def test_nothing_was_labelled_where_the_label_does_not_say_so():
    label, mask = torch.tensor([[[1, 2, 2, 0]]]), torch.tensor([[[0, 0, 1, 0]]])
    assert labelled_elsewhere(label, mask, 1) is None  # 1 is an organ: the edit has painted 2
    assert labelled_elsewhere(torch.zeros_like(label), mask, 0) is None  # an erasing edit
    assert labelled_elsewhere(None, mask, 2) is None and labelled_elsewhere(1, mask, 2) is None
    with pytest.raises(GridMismatchError, match="2 channels.*AsDiscreted"):
        labelled_elsewhere(torch.cat([label, label]), mask, 2)
    assert labelled_elsewhere(label, mask, (2, 3)) is not None


class Paints(RandomizableTransform, MapTransform):
    """Paints the mask into image and label."""

    def __init__(self, value=1):
        MapTransform.__init__(self, "image")
        RandomizableTransform.__init__(self, 1.0)
        self.value = value

    def __call__(self, data):
        out = {**data, "image": torch.where(data["mask"] > 0, NEW, data["image"])}
        out["label"] = torch.where(data["mask"] > 0, self.value, data["label"])
        out["image_diffaug"] = DiffAugRecord(applied=True, seed=5, tries=1, n_slices=1).as_dict()
        return out


def sample(value=1):
    return {"image": picture(NEIGHBOUR), "mask": MASK, "label": NEIGHBOUR.to(torch.uint8) * value}


def test_a_second_lesion_is_accepted_next_to_one_that_the_label_knows():
    options = {"model": judge(), "inpaint": Paints(), "on_reject": "retry"}
    told = LatentValidated("image", label_key="label", **options)(sample())
    assert told["image_diffaug"]["accepted"] and told["image_diffaug"]["tries"] == 1
    assert torch.equal(told["label"] > 0, (MASK + NEIGHBOUR) > 0)
    without = LatentValidated("image", **options)(sample())
    assert not without["image_diffaug"]["accepted"] and "false positives" in without["image_diffaug"]["reason"]


def test_an_organ_that_has_the_default_value_hides_no_false_positive():
    """The finding is 2 and painted so, but the validator was not told: what it knows is what it knew without the label."""
    data = {**sample(2), "label": torch.where(NEIGHBOUR > 0, 2, 1).to(torch.uint8)}
    records = [
        LatentValidated("image", label_key="label", model=judge(), inpaint=Paints(2), **value)(data)["image_diffaug"]
        for value in ({}, {"label_value": 2})
    ]
    assert not records[0]["accepted"] and "false positives" in records[0]["reason"] and records[1]["accepted"]


def test_a_refined_label_holds_the_known_finding_as_it_was_labelled():
    def rough(images):  # two pixels too large all around
        return torch.nn.functional.max_pool2d(bright(images), 5, 1, 2)

    validator = judge(rough, min_dice=0.5, rim=0.05)  # a band of three pixels
    refined = LatentValidated("image", label_key="label", validator=Validator(refine_label=True), model=validator, inpaint=Paints())(
        sample()
    )
    assert refined["image_diffaug"]["accepted"]
    beyond = (refined["label"] > 0) & (NEIGHBOUR == 0) & (disc(centre=(32, 26), radius=13) == 0)
    assert not beyond.any() and bool((refined["label"][NEIGHBOUR > 0] == 1).all())


@pytest.mark.parametrize(("index", "side", "below"), [(106, -1, -0.15), (227, 1, -0.29)])
def test_a_real_mass_is_accepted_next_to_another_one_when_the_label_knows_that(real_data, index, side, below):
    """The image's own mass once more, three pixels next to itself; the judge is darkness."""
    pack = np.load(real_data / "breast_ultrasound.npz")
    before, old = torch.from_numpy(pack["images"][index][None]), torch.from_numpy(pack["labels"][index][None] > 0)
    columns = torch.nonzero(old.any(1)[0]).flatten()
    shift = side * (int(columns[-1] - columns[0]) + 4)
    mask = old.roll(shift, 2)
    image = torch.where(mask, before.roll(shift, 2), before)

    def dark(images):
        grey = images.mean(1, keepdim=True)
        return (torch.nn.functional.avg_pool2d(grey, 9, 1, 4, count_include_pad=False) < below).float()

    judge = LatentValidate(dark, window=(0, 255))
    without, told, unpainted = judge(image, mask, before), judge(image, mask, before, known=old), judge(before, mask, known=old)
    assert not without.accepted and told.accepted and not unpainted.accepted
    assert told.score > without.score + 0.1 and told.false_positive < 0.05 < without.false_positive
