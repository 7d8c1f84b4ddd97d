from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import list_data_collate

from monai_diffaug import DiffusionLocalInpaint, EraseLesion, EraseLesiond, GridMismatchError, InpaintOptions, LatentValidate, Validator
from tests.transforms.judged import bright, nothing

LESIONS = (slice(20, 30), slice(22, 34)), (slice(44, 50), slice(40, 46))


def sample(shape=(64, 64), dtype=torch.float32, classes=(1, 1)):
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) * 80 + 60
    label = torch.zeros(1, *shape, dtype=dtype)
    for (rows, columns), value in zip(LESIONS, classes, strict=True):
        label[:, rows, columns] = value
    return {"image": image, "label": label}


@pytest.fixture
def erase(random_inpainter):
    def built(validator=nothing, **options):
        steps = {"num_inference_steps": 1, "model": random_inpainter, **options}
        return EraseLesiond("image", validator=validator, **steps).set_random_state(seed=0)

    return built


def everything(images):
    return torch.ones_like(images[:, :1])


def test_several_lesions_go_with_their_label_and_voxels_outside_the_soft_mask_stay_bit_identical(erase) -> None:
    before = sample()
    transform = erase()
    after = transform(before)
    assert after["image_diffaug"]["applied"] and after["image_diffaug"]["accepted"] and after["image_diffaug"]["score"] == 1.0
    assert not after["label"].any() and before["label"].any()
    soft = transform.inpaint.inpaint.soft_region(before["image"], after["mask"])
    changed = after["image"] != before["image"]
    assert not changed[soft == 0].any() and changed[before["label"] > 0].all()


def test_the_margin_is_in_millimetres_and_stays_clear_of_other_lesions_but_not_of_organs(erase) -> None:
    data = sample(classes=(2, 3))
    data["label"][:, 16:20, 22:34] = 1  # an organ above the first lesion
    data["label"][:, 20:30, 36:40] = 4  # another lesion, 2 px to its right
    affine = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    data = {key: MetaTensor(value, affine=affine) for key, value in data.items()}
    after = erase(label_values=[2], keep_values=[1], margin_mm=4.0)(data)
    rows, columns = (
        np.flatnonzero(after["mask"][0].numpy()[part].any(axis)) for part, axis in (((slice(None),), 1), ((slice(20, 30),), 0))
    )
    assert (rows.min(), rows.max()) == (18, 31)  # 2 pixels of 2 mm
    assert (columns.min(), columns.max()) == (18, 35)  # 4 pixels of 1 mm on the left, 2 on the right, where the other lesion begins
    expected = torch.where(data["label"] == 2, 0, data["label"])
    assert torch.equal(after["label"].as_tensor(), expected.as_tensor())


def test_a_lesion_can_become_its_organ(erase) -> None:
    data = sample(classes=(2, 2), dtype=torch.uint8)
    data["label"][:, 30:40, 20:40] = 1
    after = erase(keep_values=[1], background_value=1)(data)
    assert after["label"].dtype == torch.uint8 and torch.equal(after["label"], (data["label"] > 0).to(torch.uint8))


def test_an_ignored_region_is_neither_erased_nor_repainted(erase) -> None:
    data = sample()
    data["label"][:, 20:30, 34:40] = -1
    after = erase()(data)
    assert (after["label"][data["label"] == -1] == -1).all() and not (after["label"] > 0).any()
    assert not after["mask"][data["label"] == -1].any()


def test_what_the_validator_still_finds_is_restored_after_the_tries_with_the_reason(erase) -> None:
    before = sample()
    transform = erase(validator=everything, max_tries=2)
    after = transform(before)
    record = after["image_diffaug"]
    assert after["image"] is before["image"] and after["label"] is before["label"] and not after["mask"].any()
    assert not record["applied"] and not record["accepted"] and record["tries"] == 2
    assert "still finds a lesion" in record["reason"] and transform.statistics == {"accepted": 0, "rejected": 1, "retried": 1}


def test_the_first_seed_without_a_finding_is_taken(erase) -> None:
    answers = iter([everything, nothing])
    after = erase(validator=lambda images: next(answers)(images))(sample())
    assert after["image_diffaug"]["tries"] == 2 and after["image_diffaug"]["applied"] and not after["label"].any()


def test_one_lesion_that_stays_is_not_hidden_by_a_large_one_that_goes() -> None:
    from monai_diffaug.transforms.nothing_found import NothingFound

    image, mask = torch.full((1, 96, 96), 0.2), torch.zeros(1, 96, 96)
    mask[:, 10:60, 10:60] = mask[:, 80:86, 80:86] = 1
    image[:, 80:86, 80:86] = 0.9
    verdict = NothingFound(LatentValidate(bright, window=(0, 1)))(image, mask)
    assert not verdict.accepted and verdict.score < 0.1
    assert NothingFound(LatentValidate(bright, window=(0, 1), options=Validator(max_false_positive=1.0)))(image, mask).accepted


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_the_keys_and_types_are_the_same_whether_it_was_triggered_or_not(erase, prob) -> None:
    after = erase(prob=prob)(sample())
    assert sorted(after) == ["image", "image_diffaug", "label", "mask"]
    assert after["image_diffaug"]["applied"] == bool(prob) and after["mask"].dtype == torch.uint8
    list_data_collate([after, erase(prob=1 - prob)(sample())])
    if prob == 0:
        assert after["image"] is not None and after["image_diffaug"]["reason"] == "not triggered" and after["label"].any()


def test_a_label_without_a_lesion_leaves_everything_and_says_so(erase) -> None:
    data = {**sample(), "label": torch.zeros(1, 64, 64)}
    after = erase()(data)
    assert after["image"] is data["image"] and after["image_diffaug"]["reason"] == "the label shows no lesion to erase"


def test_inputs_are_not_written_and_a_seed_gives_the_same_result(erase) -> None:
    data = sample()
    copies = {key: value.clone() for key, value in data.items()}
    transform = erase()
    one, other = transform.edit(data, seed=7), transform.edit(data, seed=7)
    assert torch.equal(one["image"], other["image"]) and all(torch.equal(data[key], copies[key]) for key in data)
    assert not torch.equal(one["image"], transform.edit(data, seed=8)["image"])
    assert len(pickle.dumps(erase(validator="tiny"))) < 100_000


def test_two_images_of_a_sample_are_erased_together_or_not_at_all(random_inpainter) -> None:
    data = {"t1": sample()["image"], "t2": 200 - sample()["image"], "label": sample()["label"]}
    options = {"num_inference_steps": 1, "model": random_inpainter}
    both = EraseLesiond(["t1", "t2"], validator=nothing, **options)(data)
    assert both["t1_diffaug"]["applied"] and both["t2_diffaug"]["applied"] and not both["label"].any()
    calls = []
    neither = EraseLesiond(
        ["t1", "t2"], validator=lambda x: (calls.append(0), everything(x) * (len(calls) % 2))[1], max_tries=1, **options
    )(data)
    assert neither["t1"] is data["t1"] and neither["t2"] is data["t2"] and neither["label"] is data["label"]


def test_a_volume_in_its_own_type_and_orientation(erase) -> None:
    volume = (torch.rand(1, 12, 40, 40, generator=torch.Generator().manual_seed(0)) * 400 - 200).to(torch.int16)
    label = torch.zeros(1, 12, 40, 40, dtype=torch.uint8)
    label[:, 4:7, 12:20, 14:24] = 1
    affine = torch.tensor([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)  # slices first
    data = {"image": MetaTensor(volume, affine=affine), "label": MetaTensor(label, affine=affine)}
    after = erase()(data)
    assert after["image_diffaug"]["n_slices"] == 5 and after["image"].dtype == torch.int16  # the margin of 3 mm is one slice
    assert isinstance(after["image"], MetaTensor) and torch.equal(after["image"].affine, affine) and not after["label"].any()
    assert torch.equal(after["image"][:, :2], data["image"][:, :2]) and not torch.equal(after["image"], data["image"])


def test_a_ready_inpainter_brings_its_options_and_the_name_of_the_record(random_inpainter, erase) -> None:
    inpaint = DiffusionLocalInpaint(random_inpainter, num_inference_steps=2, options=InpaintOptions(record_postfix="erased"))
    after = erase(model=inpaint)(sample())
    assert after["image_erased"]["applied"] and "image_diffaug" not in after


def test_the_array_form_gives_the_same_result(erase, random_inpainter) -> None:
    data = sample()
    array = EraseLesion(model=random_inpainter, num_inference_steps=1, validator=nothing)
    edit, after = array.apply(data["image"], data["label"], seed=3), erase().edit(data, seed=3)
    assert torch.equal(edit.image, after["image"]) and torch.equal(edit.label, after["label"]) and edit.record == after["image_diffaug"]
    assert torch.equal(array.region(data["label"]), after["mask"].to(torch.uint8))


def test_numpy_in_numpy_out(erase) -> None:
    data = {key: value.numpy() for key, value in sample().items()}
    after = erase()(data)
    assert all(isinstance(after[key], np.ndarray) for key in ("image", "label", "mask")) and not after["label"].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_values": [1, 2], "keep_values": [2]}, "class 2 is in label_values and in keep_values"),
        ({"label_values": []}, "label_values must name the classes of the lesions"),
        ({"label_values": [1], "background_value": 1}, "without 0 and the background_value 1"),
        ({"margin_mm": -1.0}, "margin_mm must be >= 0"),
        ({"max_tries": 0}, "max_tries must be 1 or more"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        EraseLesiond("image", **options)


def test_a_label_that_cannot_be_used_is_refused_with_the_way_out(erase) -> None:
    with pytest.raises(GridMismatchError, match="AsDiscreted"):
        erase()({**sample(), "label": torch.zeros(3, 64, 64)})
    with pytest.raises(KeyError, match="erases what a label shows"):
        erase()({"image": sample()["image"]})
    with pytest.raises(ValueError, match="300 does not fit"):
        erase(background_value=300)(sample(dtype=torch.uint8))
