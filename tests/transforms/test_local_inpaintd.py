from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from monai.data import decollate_batch, list_data_collate
from monai.transforms import Compose

from monai_diffaug.transforms.batch import BatchLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd

PROMPT = "ultrasound of breast, malignant mass"


def picture() -> torch.Tensor:
    return torch.rand(1, 70, 90, generator=torch.Generator().manual_seed(0)) * 100 + 20


def square_mask() -> torch.Tensor:
    mask = torch.zeros(1, 70, 90)
    mask[:, 30:44, 40:52] = 1
    return mask


@pytest.fixture
def fast(random_inpainter: str) -> dict[str, object]:
    return {"model": random_inpainter, "num_inference_steps": 2}


def test_prob_zero_is_the_identity_with_the_same_keys_and_the_same_draws(fast) -> None:
    sample = {"image": picture(), "mask": square_mask(), "prompt": PROMPT, "label": torch.zeros(1, 70, 90)}
    never, always = (DiffusionLocalInpaintd("image", label_key="label", prob=p, **fast) for p in (0.0, 1.0))
    never.set_random_state(seed=3), always.set_random_state(seed=3)
    untouched, changed = never(sample), always(sample)
    assert untouched["image"] is sample["image"]
    assert untouched.keys() == changed.keys()
    assert {k: type(v) for k, v in untouched["image_diffaug"].items()} == {k: type(v) for k, v in changed["image_diffaug"].items()}
    assert never.R.randint(1 << 30) == always.R.randint(1 << 30)


def test_prob_is_kept_as_given(fast) -> None:
    transform = DiffusionLocalInpaintd("image", prob=0.25, **fast)
    assert transform.prob == 0.25 and transform.keys == ("image",)


def test_mixed_batches_collate(fast) -> None:
    sample = {"image": picture(), "mask": square_mask(), "prompt": PROMPT}
    batch = [DiffusionLocalInpaintd("image", prob=p, **fast)(sample) for p in (0.0, 1.0)]
    assert list_data_collate(batch)["image_diffaug"]["applied"].tolist() == [False, True]


def test_keep_original_passes_the_originals_on_by_reference(fast) -> None:
    sample = {"image": picture(), "mask": square_mask(), "prompt": PROMPT, "label": torch.zeros(1, 70, 90)}
    result = DiffusionLocalInpaintd("image", label_key="label", keep_original=True, **fast)(sample)
    assert all(result[f"{key}_original"] is sample[key] for key in ("image", "label", "mask"))
    assert "image_original" not in DiffusionLocalInpaintd("image", **fast)(sample)


def test_a_sample_without_mask_says_which_transform_is_missing(fast) -> None:
    with pytest.raises(KeyError, match="no 'mask'.*MedSAMMaskd"):
        DiffusionLocalInpaintd("image", **fast)({"image": picture(), "prompt": PROMPT})


def test_a_label_that_is_not_there_is_missed_unless_it_may_be(fast) -> None:
    sample = {"image": picture(), "mask": square_mask(), "prompt": PROMPT, "labels": torch.zeros(1, 70, 90)}
    with pytest.raises(KeyError, match="no 'label' .it has image, mask, prompt, labels"):
        DiffusionLocalInpaintd("image", label_key="label", **fast)(sample)
    edited = DiffusionLocalInpaintd("image", label_key="label", allow_missing_keys=True, **fast)(sample)
    assert edited["image_diffaug"]["applied"] and "label" not in edited


def test_an_instance_holds_no_weights_and_its_pickle_is_stable(fast) -> None:
    transform = DiffusionLocalInpaintd("image", **fast)
    before = pickle.dumps(transform.inpaint.spec)
    transform({"image": picture(), "mask": square_mask(), "prompt": PROMPT})
    assert pickle.dumps(transform.inpaint.spec) == before
    assert len(pickle.dumps(transform)) < 100_000
    assert deepcopy(transform).inpaint.spec == transform.inpaint.spec


def test_it_works_inside_compose_and_same_seed_gives_same_bytes(fast) -> None:
    sample = {"image": picture(), "mask": square_mask(), "prompt": PROMPT}
    runs = [Compose([DiffusionLocalInpaintd("image", **fast)]).set_random_state(seed=7)(sample)["image"] for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("collated", [False, True])
def test_where_one_of_a_samples_images_fails_the_others_and_their_label_stay_too(fast, collated) -> None:
    good, bad = picture(), picture()
    bad[0, 0, 0] = torch.nan
    transform = DiffusionLocalInpaintd(["t1", "t2"], label_key="label", on_error="passthrough", **fast)
    samples = [{"t1": good, "t2": second, "mask": square_mask(), "label": square_mask() * 0, "prompt": PROMPT} for second in (bad, good)]
    if collated:
        results = decollate_batch(BatchLocalInpaint(transform, seed=0)(list_data_collate(samples)))
    else:
        results = [transform(sample) for sample in samples]
    left, edited = results
    assert torch.equal(left["t1"], good) and not bool(left["label"].any())
    records = [left["t1_diffaug"], left["t2_diffaug"]]
    assert not any(record["applied"] for record in records) and "t2 was not edited" in records[0]["reason"]
    assert "non-finite" in records[1]["reason"] and records[0]["n_slices"] == 0
    assert bool(edited["label"].any()) and edited["t1_diffaug"]["applied"] and not torch.equal(edited["t1"], good)
