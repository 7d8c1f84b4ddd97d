"""A validator that paints itself: other candidates for rejected ones, and a guard against copies of training lesions."""

from __future__ import annotations

import pickle

import pytest
import torch
from monai.transforms.transform import MapTransform, RandomizableTransform

from monai_diffaug.data.lesion_bank import LesionBank
from monai_diffaug.edit.options import InpaintOptions, SoftEdge
from monai_diffaug.edit.record import DiffAugRecord
from monai_diffaug.edit.validation_options import Validator
from monai_diffaug.errors import DroppedSampleError
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.lesion_novelty import LesionNovelty
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from tests.transforms.judged import NEW, disc, edited_sample, flat, nothing, validated


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
        if "label" in data:
            out["label"] = torch.where(data["mask"] > 0, 1.0, data["label"])
        out["image_diffaug"] = DiffAugRecord(applied=True, seed=seed, tries=1, n_slices=1).as_dict()
        return out


def plain_sample():
    mask = disc()
    return {"image": flat(mask.shape), "mask": mask, "label": torch.zeros_like(mask)}


@pytest.mark.parametrize("refine_label", [False, True])
@pytest.mark.parametrize("inpaint", [None, FakeInpaint()])
def test_a_sample_without_a_label_is_judged_as_well(inpaint, refine_label):
    sample = edited_sample() if inpaint is None else plain_sample()
    unlabelled = {key: value for key, value in sample.items() if not key.startswith("label")}
    result = validated(validator=Validator(refine_label=refine_label), inpaint=inpaint)(unlabelled)
    assert result["image_diffaug"]["accepted"] and set(result) == {"image", "mask", "image_diffaug"}


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
def test_on_exhausted_decides_the_fate_of_the_best_of_rejected_candidates(order):
    """Discs of radius 3, 5 and 8 under a mask of radius 10: all below the threshold, 8 is the best."""

    class Radii(FakeInpaint):
        def __call__(self, data):
            out = super().__call__(data)
            out["image"] = torch.where(disc(radius=order[len(self.seeds) - 1]) > 0, NEW, data["image"])
            return out

    results = {}
    for fate in ("original", "flag"):
        transform = validated(inpaint=Radii(), on_reject="retry", max_tries=3, validator=Validator(on_exhausted=fate), min_dice=0.9)
        results[fate] = transform(plain_sample())
        record = results[fate]["image_diffaug"]
        assert not record["accepted"] and record["tries"] == 3 and record["score"] == pytest.approx(2 * 64 / 164, abs=0.05)
        assert record["applied"] is (fate == "flag") and record["seed"] == transform.inpaint.seeds[order.index(8)]
    assert int((results["flag"]["image"] == NEW).sum()) == int(disc(radius=8).sum()) and float(results["flag"]["label"].sum()) > 0
    assert torch.equal(results["original"]["image"], plain_sample()["image"])
    with pytest.raises(DroppedSampleError, match="Dice"):
        validated(inpaint=Radii(), on_reject="retry", max_tries=3, validator=Validator(on_exhausted="drop"), min_dice=0.9)(plain_sample())


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


def textured(seed):
    coarse = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")[0]


BANK = LesionBank.of([{"image": textured(i), "label": disc(radius=12)} for i in range(24)])


class Textures(FakeInpaint):
    """Paints a texture a try: copies of training lesions (below 24) or fresh ones."""

    def __init__(self, *seeds):
        super().__init__()
        self.textures = seeds

    def __call__(self, data):
        out = super().__call__(data)
        painted = textured(self.textures[len(self.seeds) - 1])
        out["image"] = torch.where(data["mask"] > 0, painted * 0.5 + 0.3, data["image"])
        return out


def guarded(*seeds, model=None, **options):
    loose = LatentValidate(lambda images: torch.ones_like(images[:, :1]), 0.0, options=Validator(max_false_positive=9.0), window=(0, 1))
    return LatentValidated(
        "image", label_key="label", model=model or loose, inpaint=Textures(*seeds), novelty=options.pop("novelty", BANK), **options
    )


def lesion_sample():
    mask = disc(radius=12)
    return {"image": flat(mask.shape), "mask": mask, "label": torch.zeros_like(mask)}


def test_a_copy_of_a_training_lesion_is_refused_like_any_other_edit():
    sample = lesion_sample()
    result = guarded(7)(sample)
    record = result["image_diffaug"]
    assert result["image"] is sample["image"] and result["label"] is sample["label"]
    assert not record["applied"] and not record["accepted"] and record["reason"].startswith("copy of training lesion 7: correlation 0.9")
    assert set(record) == set(DiffAugRecord().as_dict())
    untouched = guarded(99)(lesion_sample())["image_diffaug"]
    assert untouched["applied"] and untouched["accepted"] and untouched["reason"] == ""
    assert guarded(7, novelty=None)(lesion_sample())["image_diffaug"]["accepted"]


def test_a_copy_is_painted_again_on_retry():
    result = guarded(7, 3, 99, on_reject="retry", max_tries=3)(lesion_sample())
    assert result["image_diffaug"]["accepted"] and result["image_diffaug"]["tries"] == 3
    assert float(result["label"].sum()) > 0


def test_of_candidates_that_were_all_rejected_a_copy_is_the_last_to_be_kept():
    small = disc(radius=4)

    def wary(images):
        """Finds the whole of the copies (bright top) and little of the fresh lesion."""
        calls.append(1)
        return torch.ones_like(images[:, :1]) if len(calls) != 2 else torch.nn.functional.interpolate(small[None], images.shape[-2:])

    calls = []
    judge = LatentValidate(wary, 0.7, options=Validator(max_false_positive=9.0), window=(0, 1))
    result = guarded(7, 99, 3, validator=Validator(on_exhausted="flag"), model=judge, on_reject="retry", max_tries=3)(lesion_sample())
    record = result["image_diffaug"]
    assert not record["accepted"] and "Dice" in record["reason"] and "copy" not in record["reason"]
    assert torch.equal(result["image"][disc(radius=12) > 0], (textured(99) * 0.5 + 0.3)[disc(radius=12) > 0])


def test_the_guard_adds_its_reason_to_those_of_the_validator_and_takes_a_file(tmp_path):
    file = BANK.save(tmp_path / "bank.npz")
    for novelty in (file, str(file), LesionNovelty(file, 0.1)):
        record = guarded(7, novelty=novelty, model=LatentValidate(nothing, window=(0, 1)))(lesion_sample())["image_diffaug"]
        assert "found nothing; copy of training lesion 7" in record["reason"]
    assert len(pickle.dumps(LatentValidated("image", novelty=file))) < 100_000


def test_without_inpaint_it_judges_the_edit_before():
    mask = disc(radius=12)
    sample = {**edited_sample(mask=mask), "image": torch.where(mask > 0, textured(5), flat(mask.shape))}
    loose = LatentValidate(lambda images: torch.ones_like(images[:, :1]), 0.0, options=Validator(max_false_positive=9.0), window=(0, 1))
    result = LatentValidated("image", label_key="label", model=loose, novelty=BANK)(sample)
    assert result["image"] is sample["image_original"] and "copy of training lesion 5" in result["image_diffaug"]["reason"]


def test_not_triggered_it_removes_the_originals_of_an_edit_that_stands_before():
    before = {"image_original": flat((1, 64, 64)), "mask_original": disc(), "label_original": torch.zeros_like(disc())}
    keys = [set(validated(inpaint=FakeInpaint(), prob=prob)({**plain_sample(), **before})) for prob in (0.0, 1.0)]
    assert keys[0] == keys[1] == {"image", "mask", "label", "image_diffaug"}


def test_an_empty_mask_counts_as_no_edit(random_inpainter):
    inpaint = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=1)
    sample = {**plain_sample(), "mask": torch.zeros(1, 64, 64), "prompt": "a lesion"}
    transform = validated(nothing, inpaint=inpaint)
    record = transform(sample)["image_diffaug"]
    assert (record["applied"], record["accepted"], record["score"], record["reason"]) == (False, True, -1.0, "empty mask")
    assert transform.statistics == {"accepted": 0, "rejected": 0, "retried": 0}


@pytest.mark.parametrize("own", [True, False])
def test_of_two_edits_each_is_judged_by_its_own_validator_and_put_back_alone(random_inpainter, own):
    """The first is accepted, the second refused: image, label and second mask are those from after the first."""
    masks = {"first": disc(centre=(20, 20), radius=8), "second": disc(centre=(44, 44), radius=8)}
    sees_all = LatentValidate(
        lambda images: torch.ones_like(images[:, :1]), 0.0, options=Validator(max_false_positive=9.0, min_change=0.0), window=(0, 1)
    )
    judges = {"first": sees_all, "second": LatentValidate(nothing, window=(0, 1))}
    sample = {"image": flat((1, 64, 64)), "label": torch.zeros(1, 64, 64), "prompt": "a lesion", **masks}
    steps, states = [], []
    for name, judge in judges.items():
        inpaint = DiffusionLocalInpaintd(
            "image",
            mask_key=name,
            label_key="label",
            model=random_inpainter,
            num_inference_steps=1,
            options=InpaintOptions(soft_edge=SoftEdge(width_px_at_512=1.0)),
            keep_original=True,
        )
        validate = LatentValidated("image", mask_key=name, label_key="label", model=judge, inpaint=inpaint if own else None)
        steps += [validate] if own else [inpaint, validate]
    for step in steps:
        sample = step.set_random_state(3)(sample)
        states.append(sample)
    after_first = states[0 if own else 1]
    assert after_first["image_diffaug"]["accepted"] and not torch.equal(after_first["image"], flat((1, 64, 64)))
    assert sample["image"] is after_first["image"] and sample["label"] is after_first["label"] and sample["second"] is masks["second"]
    assert torch.equal(sample["label"], masks["first"]) and not sample["image_diffaug"]["applied"]
    assert set(sample) == {"image", "label", "prompt", "first", "second", "image_diffaug"}


@pytest.mark.parametrize("own", [True, False])
def test_two_edits_with_postfixes_of_their_own_keep_both_records(random_inpainter, own):
    masks = {"first": disc(centre=(20, 20), radius=8), "second": disc(centre=(44, 44), radius=8)}
    sample = {"image": flat((1, 64, 64)), "prompt": "a lesion", **masks}
    keys = []
    for prob in (1.0, 0.0):
        result = sample
        for name in masks:
            inpaint = DiffusionLocalInpaintd(
                "image",
                mask_key=name,
                model=random_inpainter,
                num_inference_steps=1,
                keep_original=True,
                options=InpaintOptions(record_postfix=name),
                prob=prob if name == "second" else 1.0,
            )
            options = {"inpaint": inpaint} if own else {"validator": Validator(record_postfix=name)}
            judge = LatentValidate(nothing, window=(0, 1))
            validate = LatentValidated("image", mask_key=name, model=judge, on_reject="flag", **options)
            for step in [validate] if own else [inpaint, validate]:
                result = step(result)
        keys.append(set(result))
        assert result["image_first"]["applied"] and result["image_first"]["score"] == 0
        assert result["image_second"]["applied"] is (prob == 1.0)
    assert keys[0] == keys[1] == {"image", "prompt", "first", "second", "image_first", "image_second"}
