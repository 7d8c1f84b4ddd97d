"""What happens to rejected samples, with segmenters that answer what the test wants."""

from __future__ import annotations

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from monai.transforms.transform import MapTransform, RandomizableTransform

from monai_diffaug.edit.record import DiffAugRecord
from monai_diffaug.edit.validation_options import Dynamic, Validator
from monai_diffaug.errors import DroppedSampleError
from monai_diffaug.transforms.latent_validated import LatentValidateD, LatentValidated
from tests.transforms.judged import bright, disc, edited_sample, nothing, validated


def test_an_accepted_sample_keeps_its_edit_and_loses_the_originals():
    sample = edited_sample()
    transform = validated()
    result = transform(sample)
    assert set(result) == {"image", "mask", "label", "image_diffaug"}
    assert result["image"] is sample["image"] and result["label"] is sample["label"]
    record = result["image_diffaug"]
    assert record["applied"] and record["accepted"] and record["score"] > 0.95 and record["tries"] == 1
    assert type(record["score"]) is float and type(record["accepted"]) is bool
    assert transform.statistics == {"accepted": 1, "rejected": 0, "retried": 0}


def test_a_rejected_sample_gets_image_label_and_mask_back():
    sample = edited_sample()
    originals = {key: sample[f"{key}_original"] for key in ("image", "label", "mask")}
    before = deepcopy(sample)
    transform = validated(nothing)
    result = transform(sample)
    assert all(result[key] is originals[key] for key in originals)
    assert set(result) == {"image", "mask", "label", "image_diffaug"}
    record = result["image_diffaug"]
    assert not record["applied"] and not record["accepted"] and record["score"] == 0 and "nothing" in record["reason"]
    assert transform.statistics == {"accepted": 0, "rejected": 1, "retried": 0}
    assert set(sample) == set(before) and torch.equal(sample["image"], before["image"])


def test_flag_keeps_the_edit_and_says_so():
    sample = edited_sample()
    result = validated(nothing, on_reject="flag")(sample)
    assert result["image"] is sample["image"]
    assert result["image_diffaug"]["applied"] and not result["image_diffaug"]["accepted"]


def test_drop_raises_the_documented_skip():
    with pytest.raises(DroppedSampleError, match="found nothing"):
        validated(nothing, on_reject="drop")(edited_sample())


def test_a_sample_without_an_edit_passes_through_untouched():
    sample = edited_sample()
    sample["image_diffaug"] = DiffAugRecord(reason="not triggered").as_dict()
    result = validated(nothing)(sample)
    assert result["image"] is sample["image"] and result["image_diffaug"] == sample["image_diffaug"]
    assert not any(str(key).endswith("_original") for key in result)


def test_a_coin_that_falls_the_other_way_leaves_the_sample_but_removes_the_originals():
    sample = edited_sample()
    result = validated(nothing, prob=0.0)(sample)
    assert result["image"] is sample["image"] and set(result) == {"image", "mask", "label", "image_diffaug"}


def test_missing_originals_are_named_with_the_option_that_brings_them():
    sample = {key: value for key, value in edited_sample().items() if not key.endswith("_original")}
    with pytest.raises(ValueError, match=r"image_original.*keep_original=True"):
        validated()(sample)
    assert validated(on_reject="flag")(sample)["image_diffaug"]["accepted"]


def test_a_missing_record_says_what_to_put_before():
    sample = edited_sample()
    del sample["image_diffaug"]
    with pytest.raises(KeyError, match="DiffusionLocalInpaintd"):
        validated()(sample)


def test_images_of_one_sample_share_the_verdict():
    sample = edited_sample()
    for part in ("", "_diffaug", "_original"):
        sample[f"other{part}"] = deepcopy(sample[f"image{part}"])
    sample["other"] = sample["other_original"]
    result = LatentValidated(["image", "other"], model=bright, label_key="label", window=(0, 1))(sample)
    assert result["image"] is sample["image_original"] and not result["image_diffaug"]["accepted"]


def test_refined_label_is_what_the_validator_found():
    painted = disc(radius=9)
    sample = edited_sample(painted=painted)
    sample["label_original"][:, :3, :3] = 4
    result = validated(validator=Validator(refine_label=True), label_value=2)(sample)
    refined = result["label"] == 2
    assert 0 < int(refined.sum()) < int(disc().sum())
    assert 2 * int((refined & (painted > 0)).sum()) / int(refined.sum() + painted.sum()) > 0.95
    assert bool((result["label"][:, :3, :3] == 4).all()) and result["label"].dtype == sample["label"].dtype


def test_dynamic_threshold_rises_with_the_scores_and_never_falls_below_the_least():
    transform = validated(dynamic=Dynamic(length=4))
    assert transform.threshold == 0.7
    for _ in range(6):
        transform(edited_sample())
    assert transform.threshold > 0.95 and len(transform.scores) == 4
    transform.scores = [0.1, 0.2]
    assert transform.threshold == 0.7


def test_the_dynamic_threshold_is_the_thirty_per_cent_quantile_of_the_last_256_scores_and_off_by_default():
    transform = validated(dynamic=Dynamic())
    assert transform.dynamic.length == 256
    transform.scores = [0.72, 0.75, 0.78, 0.8, 0.82, 0.84, 0.86, 0.9, 0.92, 0.94, 0.99]
    assert transform.threshold == pytest.approx(0.8)  # the third of ten steps up the sorted scores
    plain = validated()
    plain.scores = list(transform.scores)
    assert plain.dynamic is None and plain.threshold == 0.7


def test_a_score_counts_for_the_threshold_of_the_next_sample_not_for_its_own():
    transform = validated(dynamic=Dynamic(), min_dice=0.1)
    transform.scores = [0.2] * 5
    assert transform(edited_sample())["image_diffaug"]["accepted"]
    transform.scores = [0.999] * 20
    result = transform(edited_sample(painted=disc(radius=9)))
    assert not result["image_diffaug"]["accepted"] and "Dice" in result["image_diffaug"]["reason"]


def test_the_thresholds_are_those_of_the_published_neighbours():
    judge = LatentValidated("image").validator
    assert judge.min_dice == 0.7 and judge.options == Validator()
    assert LatentValidated("image").on_reject == "original" and LatentValidated("image").max_tries == 3


def test_statistics_survive_copies_and_can_be_reset():
    transform = validated()
    transform(edited_sample())
    for copied in (deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert copied.statistics == {"accepted": 1, "rejected": 0, "retried": 0}
        assert all(type(count) is int for count in copied.statistics.values())
    transform.reset_statistics()
    assert transform.statistics == {"accepted": 0, "rejected": 0, "retried": 0}


def test_an_instance_is_small_and_its_bases_are_in_the_contracts_order():
    assert len(pickle.dumps(LatentValidated("image"))) < 100_000
    assert LatentValidated.__bases__[:2] == (RandomizableTransform, MapTransform)
    assert LatentValidated("image", prob=0.25).prob == 0.25
    assert LatentValidateD is LatentValidated


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"on_reject": "retry"}, "inpaint="),
        ({"on_reject": "keep"}, "on_reject"),
        ({"max_tries": 0}, "max_tries"),
        ({"validator": Validator(refine_label=True)}, "label_key"),
    ],
)
def test_options_without_their_partner_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        LatentValidated("image", **options)


@pytest.mark.parametrize(
    ("group", "option"), [(Validator, {"on_exhausted": "retry"}), (Dynamic, {"quantile": 2}), (Dynamic, {"length": 0})]
)
def test_an_option_of_a_group_out_of_range_is_refused(group, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        group(**option)


@pytest.mark.parametrize("option", [{"dynamic": True}, {"validator": {"rim": 0.1}}])
def test_a_group_of_another_class_is_refused_with_what_a_config_writes(option):
    with pytest.raises(TypeError, match=rf"{next(iter(option))} must be .*_target_: monai_diffaug\."):
        LatentValidated("image", **option)


def test_numpy_images_and_integer_images_are_judged_and_restored_in_their_type():
    sample = edited_sample()
    for key in ("image", "image_original"):
        sample[key] = (sample[key].numpy() * 1000).astype(np.int16)
    accepted = validated(window=(0, 1000))(dict(sample))
    restored = validated(nothing, window=(0, 1000))(dict(sample))
    assert accepted["image_diffaug"]["accepted"] and accepted["image"].dtype == np.int16
    assert restored["image"] is sample["image_original"]
