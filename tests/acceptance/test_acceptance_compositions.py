"""The transforms inside MONAI's compositions, on its three kinds of arrays, before and after its transforms."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, TestTimeAugmentation, list_data_collate, set_track_meta
from monai.transforms import (
    Compose,
    EnsureTyped,
    Flipd,
    Invertd,
    LoadImaged,
    OneOf,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandomOrder,
    RandRotate90d,
    Rotate90d,
    SaveImaged,
    SomeOf,
    Spacingd,
)

KEYS = ["image", "mask", "label"]

COMPOSITIONS = {
    "flat": lambda t: Compose([EnsureTyped("image"), t]),
    "nested": lambda t: Compose([Compose([EnsureTyped("image"), Compose([t])])]),
    "lazy": lambda t: Compose([EnsureTyped("image"), t], lazy=True),
    "one of": lambda t: OneOf([t, t]),
    "some of": lambda t: SomeOf([EnsureTyped("image"), t], num_transforms=2),
    "random order": lambda t: RandomOrder([EnsureTyped("image"), t]),
    "map items": lambda t: Compose([t], map_items=2),
    "not mapped": lambda t: Compose([t], map_items=False),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_each_composition_runs_it_and_repeats_it_for_its_seed(name, inpaint, sample, was_edited) -> None:
    def run(seed: int) -> dict[str, object]:
        return COMPOSITIONS[name](inpaint()).set_random_state(seed=seed)(sample)

    first = run(1)
    assert was_edited(first, sample)
    assert torch.equal(run(1)["image"], first["image"]) and not torch.equal(run(2)["image"], first["image"])


def test_lists_of_samples_are_mapped_to_any_depth(inpaint, samples, was_edited) -> None:
    a, b = samples(2)
    for result in Compose([inpaint()])([a, b]), Compose([inpaint()], map_items=2)([[a, b]])[0]:
        assert was_edited(result[0], a) and was_edited(result[1], b)


def test_pending_operations_are_applied_before_the_edit(inpaint, sample) -> None:
    """A lazy composition hands on grids that are not resampled yet; the model must see the resampled image."""
    steps = [Rotate90d(KEYS, k=1), Flipd(KEYS, spatial_axis=0), inpaint(), Rotate90d(KEYS, k=1)]
    eager, lazy = (Compose(steps, lazy=lazy).set_random_state(seed=1)(sample) for lazy in (False, True))
    assert lazy["image"].shape == sample["image"].shape and lazy["image_diffaug"]["applied"]
    assert torch.allclose(lazy["image"].as_tensor(), eager["image"].as_tensor(), atol=1e-2)


def test_threads_that_share_a_composition_get_what_one_thread_gets(inpaint, samples) -> None:
    transform, items = Compose([inpaint()]).set_random_state(seed=1), samples(4)
    expected = [transform(item, threading=True)["image"] for item in items]  # copies are drawn from, so the state stands still
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda item: transform(item, threading=True)["image"], items))
    assert all(torch.equal(x, y) for x, y in zip(expected, got, strict=True))


@pytest.mark.parametrize("kind", [np.asarray, lambda x: x.as_tensor(), lambda x: x], ids=["numpy", "tensor", "meta tensor"])
def test_each_kind_of_array_stays_what_it_is(kind, inpaint, sample, was_edited) -> None:
    data = {key: kind(value) if isinstance(value, torch.Tensor) else value for key, value in sample.items()}
    result = Compose([inpaint()]).set_random_state(seed=1)(data)
    assert type(result["image"]) is type(data["image"]) and type(result["label"]) is type(data["label"])
    assert was_edited(result, data)


def test_without_track_meta_tensors_stay_plain(inpaint, sample, was_edited) -> None:
    set_track_meta(False)
    try:
        result = Compose([EnsureTyped(KEYS), inpaint()]).set_random_state(seed=1)(sample)
    finally:
        set_track_meta(True)
    assert type(result["image"]) is torch.Tensor and was_edited(result, sample)


def test_missing_keys_are_skipped_when_allowed_and_named_when_not(inpaint, sample, was_edited) -> None:
    result = Compose([inpaint(("image", "second"), allow_missing_keys=True)])(sample)
    assert was_edited(result, sample) and "second_diffaug" not in result
    with pytest.raises(RuntimeError) as raised:
        Compose([inpaint(("image", "second"))])(sample)
    assert isinstance(raised.value.__cause__, KeyError) and "second" in str(raised.value.__cause__)


def test_crops_of_one_sample_are_edited_each_and_collate(inpaint, sample) -> None:
    crop = RandCropByPosNegLabeld(KEYS, label_key="mask", spatial_size=(24, 24), pos=1, neg=0, num_samples=3)
    crops = Compose([crop, inpaint()]).set_random_state(seed=1)(sample)
    assert len(crops) == 3 and all(each["image_diffaug"]["applied"] for each in crops)
    assert len({each["image_diffaug"]["seed"] for each in crops}) == 3
    assert list_data_collate([crops])["image"].shape == (3, 1, 24, 24)


def test_inverting_the_spatial_transforms_brings_the_edit_back_onto_the_original_grid(inpaint, sample, was_edited) -> None:
    transform = Compose([RandFlipd(KEYS, prob=1.0), RandRotate90d(KEYS, prob=1.0), inpaint()]).set_random_state(seed=1)
    result = transform(sample)
    back = Invertd("image", transform, orig_keys="image", nearest_interp=False)(result)
    assert torch.allclose(back["image"].affine, sample["image"].affine, atol=1e-9)
    assert was_edited(back, sample)


def test_inverting_a_resampling_works_across_the_edit(inpaint, samples) -> None:
    (volume,) = samples(1, (30, 32, 4))
    transform = Compose([Spacingd(KEYS, pixdim=(2.0, 2.0, 3.0)), inpaint()])
    result = transform(volume)
    back = Invertd("image", transform, orig_keys="image")(result)["image"]
    assert back.shape == volume["image"].shape and result["image"].shape != back.shape


@pytest.mark.filterwarnings("ignore:TTA has encountered issues:UserWarning")
def test_test_time_augmentation_runs_with_the_edit_in_it(inpaint, sample) -> None:
    transform = Compose([RandFlipd(KEYS, prob=0.5, spatial_axis=0), inpaint(prob=0.5)]).set_random_state(seed=1)
    augment = TestTimeAugmentation(transform, batch_size=2, inferrer_fn=lambda x: x, orig_key="image", progress=False, nearest_interp=False)
    _, mean, std, _ = augment(sample, num_examples=4)
    outside = sample["mask"].as_tensor()[0, :, -8:].sum() == 0
    assert outside and mean.shape == sample["image"].shape
    assert torch.allclose(mean[..., -8:], sample["image"].as_tensor()[..., -8:], atol=1e-3)  # flips undone, edits elsewhere
    assert float(std.max()) > 0


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_saved_and_loaded_it_is_the_same(dtype, inpaint, samples, tmp_path: Path) -> None:
    (volume,) = samples(1, (30, 32, 4))
    volume["image"] = MetaTensor(volume["image"].as_tensor().to(torch.from_numpy(np.empty(0, dtype)).dtype), affine=volume["image"].affine)
    save = SaveImaged("image", output_dir=tmp_path, output_dtype=dtype, resample=False, separate_folder=False, print_log=False)
    result = Compose([inpaint(), save])(volume)
    (path,) = tmp_path.glob("*.nii.gz")
    loaded = LoadImaged("image", ensure_channel_first=True, dtype=dtype)({"image": str(path)})["image"]
    assert result["image_diffaug"]["applied"] and result["image"].dtype == volume["image"].dtype
    assert torch.equal(loaded.as_tensor(), result["image"].as_tensor())
    assert torch.allclose(loaded.affine, volume["image"].affine)
