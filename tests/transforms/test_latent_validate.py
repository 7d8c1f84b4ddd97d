"""The accept rule and what happens to rejected samples, with segmenters that answer what the test wants."""

from __future__ import annotations

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, RandomizableTransform

from monai_diffaug.errors import DroppedSampleError, GridMismatchError
from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.provenance import DiffAugRecord
from monai_diffaug.transforms.latent_validate import LatentValidate, LatentValidateD, LatentValidated

OLD, NEW = 0.2, 0.9


def bright(images):
    """Segments whatever is bright."""
    return (images.mean(1, keepdim=True) > 0).float()


def nothing(images):
    return torch.zeros_like(images[:, :1])


def disc(size=64, centre=(32, 32), radius=10):
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((ys - centre[0]) ** 2 + (xs - centre[1]) ** 2 <= radius**2)[None].float()


def flat(shape):
    """A dark image with a bright border pixel, so that its window is that of the edited one."""
    image = torch.full(shape, OLD)
    image[..., 0, :] = 1.0
    image[..., -1, :] = 0.0
    return image


def edited_sample(painted=None, mask=None, **record):
    mask = disc() if mask is None else mask
    painted = mask if painted is None else painted
    original = flat(mask.shape)
    image = torch.where(painted > 0, NEW, original)
    label = torch.zeros_like(mask)
    return {
        "image": image,
        "mask": mask,
        "label": torch.where(mask > 0, 1.0, label),
        "image_diffaug": DiffAugRecord(applied=True, seed=5, tries=1, n_slices=1, **record).as_dict(),
        "image_original": original,
        "label_original": label,
        "mask_original": mask,
    }


def validated(segmenter=bright, **options):
    options = {"label_key": "label", "window": (0.0, 1.0), **options}
    return LatentValidated("image", validator=segmenter, **options)


class FakeInpaint(RandomizableTransform, MapTransform):
    """Paints the mask, or only a corner of it for seeds of bad luck; counts and remembers its seeds."""

    def __init__(self, good_after=0, prob=1.0, fails=False):
        MapTransform.__init__(self, "image")
        RandomizableTransform.__init__(self, prob)
        self.good_after, self.fails = good_after, fails
        self.seeds: list[int] = []

    def __call__(self, data):
        super().randomize(None)
        seed = int(self.R.randint(2**32 - 1, dtype="uint32"))
        out = dict(data)
        if not self._do_transform or self.fails:
            out["image_diffaug"] = DiffAugRecord(seed=seed, reason="not triggered").as_dict()
            return out
        self.seeds.append(seed)
        painted = data["mask"] if len(self.seeds) > self.good_after else data["mask"] * disc(centre=(32 - 8, 32))
        out["image"] = torch.where(painted > 0, NEW, data["image"])
        out["label"] = torch.where(data["mask"] > 0, 1.0, data["label"])
        out["image_diffaug"] = DiffAugRecord(applied=True, seed=seed, tries=1, n_slices=1).as_dict()
        return out


def plain_sample():
    mask = disc()
    return {"image": flat(mask.shape), "mask": mask, "label": torch.zeros_like(mask)}


def test_an_edit_that_is_found_where_it_was_asked_for_is_accepted():
    verdict = LatentValidate(bright, window=(0, 1), context=2.0)(edited_sample()["image"], disc(), flat((1, 64, 64)))
    assert verdict.accepted and verdict.reason == ""
    assert verdict.score > 0.95 and verdict.coverage > 0.95 and verdict.change == pytest.approx(NEW - OLD, abs=1e-5)


def test_an_edit_that_is_not_found_is_rejected_with_the_reason():
    verdict = LatentValidate(nothing, window=(0, 1))(edited_sample()["image"], disc())
    assert not verdict.accepted and verdict.score == 0 and "found nothing" in verdict.reason


def test_a_prediction_beside_the_mask_counts_as_false_positive_only_beyond_the_rim():
    mask, painted = disc(radius=12), disc(radius=14)
    image = torch.where(painted > 0, NEW, flat(mask.shape))
    strict = LatentValidate(bright, window=(0, 1), rim=0.0)(image, mask)
    tolerant = LatentValidate(bright, window=(0, 1), rim=0.06)(image, mask)
    assert strict.false_positive > 0.2 and not strict.accepted and "false positives" in strict.reason
    assert tolerant.false_positive == 0 and tolerant.accepted


def test_each_threshold_rejects_on_its_own():
    mask = disc(radius=12)
    image = torch.where(disc(radius=10) > 0, NEW, flat(mask.shape))
    loose = {"min_dice": 0.0, "min_coverage": 0.0, "max_false_positive": 9.0, "min_change": 0.0}
    assert LatentValidate(bright, window=(0, 1), **loose)(image, mask, flat(mask.shape)).accepted
    for name, value, word in (("min_dice", 0.9, "Dice"), ("min_coverage", 0.9, "coverage"), ("min_change", 0.9, "change")):
        verdict = LatentValidate(bright, window=(0, 1), **{**loose, name: value})(image, mask, flat(mask.shape))
        assert not verdict.accepted and word in verdict.reason


def test_an_unchanged_image_is_rejected_even_if_the_segmenter_finds_something():
    image = edited_sample()["image"]
    verdict = LatentValidate(bright, window=(0, 1))(image, disc(), image)
    assert verdict.score > 0.9 and not verdict.accepted and "change" in verdict.reason


def test_counts_of_a_volume_are_pooled_over_its_slices_in_the_plane_of_its_affine():
    mask = torch.zeros(1, 40, 64, 64)
    mask[:, 10] = disc(radius=12)
    mask[:, 11] = disc(radius=6)
    image = flat(mask.shape)
    image[:, 10] = torch.where(mask[:, 10] > 0, NEW, image[:, 10])
    affine = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # first voxel axis is superior
    judge = LatentValidate(bright, window=(0, 1), plane="axial")
    verdict = judge(MetaTensor(image, affine=affine), mask)
    area = [float(mask[:, i].sum()) for i in (10, 11)]
    assert verdict.coverage == pytest.approx(area[0] / sum(area), abs=0.03)
    assert verdict.predicted[:, 10].any() and not verdict.predicted[:, 11].any()
    assert verdict.predicted.shape == mask.shape


def test_a_lesion_of_three_pixels_at_the_border_is_judged():
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:23, 0:3] = 1
    verdict = LatentValidate(bright, window=(0, 1), rim=0.06)(torch.where(mask > 0, NEW, flat(mask.shape)), mask)
    assert verdict.coverage > 0.9 and verdict.score > 0.6


def test_same_seed_same_verdict_whatever_the_batch_size():
    class Noisy:
        size_px = 64

        def predict(self, images, generators):
            return torch.stack([torch.rand((1, 64, 64), generator=g) for g in generators])

    noisy = Noisy()
    mask = torch.zeros(1, 64, 64, 5)
    mask[:, 20:40, 20:40] = 1
    image = torch.rand(1, 64, 64, 5)
    first, second = (LatentValidate(noisy, batch_size=n)(image, mask, seed=3) for n in (1, 4))
    other = LatentValidate(noisy)(image, mask, seed=4)
    assert torch.equal(first.predicted, second.predicted) and first.score == second.score
    assert not torch.equal(first.predicted, other.predicted)


def test_a_mask_on_another_grid_names_both_shapes():
    with pytest.raises(GridMismatchError, match=r"32, 32.*64, 64.*ResampleToMatchd"):
        LatentValidate(bright)(torch.rand(1, 64, 64), torch.ones(1, 32, 32))


@pytest.mark.parametrize(
    "options", [{"min_dice": 1.5}, {"min_coverage": -0.1}, {"max_false_positive": -1}, {"batch_size": 0}, {"context": 0.5}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LatentValidate(bright, **options)


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
    kept = {key: sample[f"{key}_original"] for key in ("image", "label", "mask")}
    before = deepcopy(sample)
    transform = validated(nothing)
    result = transform(sample)
    assert all(result[key] is kept[key] for key in kept)
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
    result = LatentValidated(["image", "other"], validator=bright, label_key="label", window=(0, 1))(sample)
    assert result["image"] is sample["image_original"] and not result["image_diffaug"]["accepted"]


def test_retry_stops_at_the_first_candidate_that_is_accepted():
    inpaint = FakeInpaint(good_after=2)
    transform = validated(inpaint=inpaint, on_reject="retry", max_tries=4).set_random_state(seed=1)
    sample = plain_sample()
    result = transform(sample)
    assert result["image_diffaug"]["accepted"] and result["image_diffaug"]["tries"] == 3
    assert len(set(inpaint.seeds)) == 3 and float(result["label"].sum()) > 0
    assert transform.statistics == {"accepted": 1, "rejected": 0, "retried": 2}


def test_retry_gives_the_original_when_no_candidate_is_accepted():
    transform = validated(inpaint=FakeInpaint(good_after=99), on_reject="retry", max_tries=3)
    sample = plain_sample()
    result = transform(sample)
    assert result["image"] is sample["image"] and result["label"] is sample["label"]
    record = result["image_diffaug"]
    assert not record["applied"] and not record["accepted"] and record["tries"] == 3 and 0 < record["score"] < 0.7
    assert transform.statistics == {"accepted": 0, "rejected": 1, "retried": 2}


@pytest.mark.parametrize("order", [(5, 8, 3), (8, 3, 5), (3, 5, 8)])
def test_of_candidates_that_were_all_rejected_the_best_is_judged_and_kept_when_asked(order):
    """Discs of radius 3, 5 and 8 under a mask of radius 10: all below the threshold, 8 is the best."""

    class Radii(FakeInpaint):
        def __call__(self, data):
            out = super().__call__(data)
            out["image"] = torch.where(disc(radius=order[len(self.seeds) - 1]) > 0, NEW, data["image"])
            return out

    results = {}
    for fate in ("original", "flag"):
        transform = validated(inpaint=Radii(), on_reject="retry", max_tries=3, on_exhausted=fate, min_dice=0.9)
        results[fate] = transform(plain_sample())
        record = results[fate]["image_diffaug"]
        assert not record["accepted"] and record["tries"] == 3 and record["score"] == pytest.approx(2 * 64 / 164, abs=0.05)
        assert record["applied"] is (fate == "flag") and record["seed"] == transform.inpaint.seeds[order.index(8)]
    assert int((results["flag"]["image"] == NEW).sum()) == int(disc(radius=8).sum()) and float(results["flag"]["label"].sum()) > 0
    assert torch.equal(results["original"]["image"], plain_sample()["image"])
    with pytest.raises(DroppedSampleError, match="Dice"):
        validated(inpaint=Radii(), on_reject="retry", max_tries=3, on_exhausted="drop", min_dice=0.9)(plain_sample())


def test_a_retry_flips_the_coin_of_the_inpainting_once():
    hits = 0
    for seed in range(12):
        transform = validated(inpaint=FakeInpaint(good_after=1, prob=0.5), on_reject="retry", max_tries=3)
        record = transform.set_random_state(seed=seed)(plain_sample())["image_diffaug"]
        assert record["tries"] in (0, 2) and record["accepted"]
        hits += record["applied"]
    assert 2 <= hits <= 10


def test_inpainting_that_fails_is_passed_on_as_it_is():
    result = validated(inpaint=FakeInpaint(fails=True), on_reject="retry")(plain_sample())
    assert not result["image_diffaug"]["applied"] and result["image_diffaug"]["score"] == -1


def test_draw_count_does_not_depend_on_tries_data_or_coin():
    states = []
    for good_after, prob, sample in ((0, 1.0, plain_sample()), (9, 1.0, plain_sample()), (0, 0.0, plain_sample())):
        transform = validated(inpaint=FakeInpaint(good_after), on_reject="retry", prob=prob).set_random_state(seed=3)
        transform(sample)
        states.append(transform.R.randint(2**31))
    transform = validated().set_random_state(seed=3)
    transform(edited_sample())
    states.append(transform.R.randint(2**31))
    assert len(set(states)) == 1


def test_not_triggered_with_inpainting_gives_the_same_keys():
    done = validated(inpaint=FakeInpaint())(plain_sample())
    left = validated(inpaint=FakeInpaint(), prob=0.0)(plain_sample())
    assert set(done) == set(left) and set(done["image_diffaug"]) == set(left["image_diffaug"])
    assert not left["image_diffaug"]["applied"]


def test_refined_label_is_what_the_validator_found():
    painted = disc(radius=9)
    sample = edited_sample(painted=painted)
    sample["label_original"][:, :3, :3] = 4
    result = validated(refine_label=True, label_value=2)(sample)
    found = result["label"] == 2
    assert 0 < int(found.sum()) < int(disc().sum())
    assert 2 * int((found & (painted > 0)).sum()) / int(found.sum() + painted.sum()) > 0.95
    assert bool((result["label"][:, :3, :3] == 4).all()) and result["label"].dtype == sample["label"].dtype


def test_dynamic_threshold_rises_with_the_scores_and_never_falls_below_the_least():
    transform = validated(dynamic=True, dynamic_length=4)
    assert transform.threshold == 0.7
    for _ in range(6):
        transform(edited_sample())
    assert transform.threshold > 0.95 and len(transform.scores) == 4
    transform.scores = [0.1, 0.2]
    assert transform.threshold == 0.7


def test_the_dynamic_threshold_is_the_thirty_per_cent_quantile_of_the_last_256_scores_and_off_by_default():
    transform = validated(dynamic=True)
    assert transform.dynamic_length == 256
    transform.scores = [0.72, 0.75, 0.78, 0.8, 0.82, 0.84, 0.86, 0.9, 0.92, 0.94, 0.99]
    assert transform.threshold == pytest.approx(0.8)  # the third of ten steps up the sorted scores
    plain = validated()
    plain.scores = list(transform.scores)
    assert not plain.dynamic and plain.threshold == 0.7


def test_a_score_counts_for_the_threshold_of_the_next_sample_not_for_its_own():
    transform = validated(dynamic=True, min_dice=0.1)
    transform.scores = [0.2] * 5
    assert transform(edited_sample())["image_diffaug"]["accepted"]
    transform.scores = [0.999] * 20
    result = transform(edited_sample(painted=disc(radius=9)))
    assert not result["image_diffaug"]["accepted"] and "Dice" in result["image_diffaug"]["reason"]


def test_the_thresholds_are_those_of_the_published_neighbours():
    judge = LatentValidated("image").validator
    assert (judge.min_dice, judge.min_coverage, judge.max_false_positive) == (0.7, 0.7, 0.05) and judge.min_change > 0
    assert LatentValidated("image").on_reject == "original" and LatentValidated("image").max_tries == 3


def test_what_is_found_beyond_the_dilated_box_is_no_false_positive():
    mask = disc(radius=6)
    near, far = flat(mask.shape), flat(mask.shape)
    near[:, 29:35, 40:43] = NEW  # two pixels beside the mask: in its box of 13 pixels enlarged by 4 on each side
    far[:, 29:35, 46:49] = NEW
    judge = LatentValidate(bright, window=(0, 1), rim=0.0, box_margin=0.3, context=3.0)
    beside, beyond = (judge(torch.where(mask > 0, NEW, image), mask).false_positive for image in (near, far))
    assert beside > 0.05 and beyond < 0.05


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
    assert LatentValidated.__bases__ == (RandomizableTransform, MapTransform)
    assert LatentValidated("image", prob=0.25).prob == 0.25
    assert LatentValidateD is LatentValidated


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"on_reject": "retry"}, "inpaint="),
        ({"on_reject": "keep"}, "on_reject"),
        ({"max_tries": 0}, "max_tries"),
        ({"on_exhausted": "retry"}, "on_exhausted"),
        ({"refine_label": True}, "label_key"),
        ({"dynamic_quantile": 2}, "dynamic_quantile"),
    ],
)
def test_options_without_their_partner_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        LatentValidated("image", **options)


def test_numpy_images_and_integer_images_are_judged_and_restored_in_their_type():
    sample = edited_sample()
    for key in ("image", "image_original"):
        sample[key] = (sample[key].numpy() * 1000).astype(np.int16)
    accepted = validated(window=(0, 1000))(dict(sample))
    restored = validated(nothing, window=(0, 1000))(dict(sample))
    assert accepted["image_diffaug"]["accepted"] and accepted["image"].dtype == np.int16
    assert restored["image"] is sample["image_original"]


@pytest.mark.skipif(
    not all((tiny_folder(p) / "config.json").is_file() for p in ("validator", "inpainter/vae")),
    reason="the embedded validator or its VAE is not there yet",
)
def test_the_embedded_validator_gives_the_same_verdict_twice():
    judge = LatentValidate()
    image, mask = edited_sample()["image"], disc()
    first, second = judge(image, mask, seed=1), judge(image, mask, seed=1)
    assert first.score == second.score and torch.equal(first.predicted, second.predicted)
