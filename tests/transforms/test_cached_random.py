from __future__ import annotations

import pickle
import threading
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor, SmartCacheDataset
from monai.transforms import (
    Compose,
    EnsureTyped,
    Invertd,
    RandFlipd,
    RandGaussianNoised,
    RandomizableTrait,
    RandRotate90d,
    RandSpatialCropSamplesd,
    ScaleIntensityd,
    Transform,
)

from monai_diffaug.transforms.cached_random import CachedRandomd


def noise() -> RandGaussianNoised:
    return RandGaussianNoised("image", prob=1.0, std=1.0)


def items(count: int = 10) -> list[dict[str, object]]:
    return [{"image": torch.zeros(1, 4, 4), "id": f"case-{i}"} for i in range(count)]


def test_monai_takes_it_for_a_deterministic_transform() -> None:
    transform = CachedRandomd(noise(), seed=1, id_key="id")
    assert isinstance(transform, Transform) and not isinstance(transform, RandomizableTrait) and not hasattr(transform, "set_random_state")


def test_the_same_seed_item_and_draw_give_the_same_bytes_and_any_other_does_not() -> None:
    def draws(seed: int, item: str) -> list[torch.Tensor]:
        transform = CachedRandomd(noise(), seed=seed, id_key="id")
        return [transform({"image": torch.zeros(1, 4, 4), "id": item})["image"] for _ in range(2)]

    first, second = draws(1, "a")
    assert all(torch.equal(x, y) for x, y in zip((first, second), draws(1, "a"), strict=True))
    assert not torch.equal(first, second)
    assert not torch.equal(first, draws(2, "a")[0]) and not torch.equal(first, draws(1, "b")[0])


def test_other_items_in_between_and_the_global_generators_do_not_matter() -> None:
    alone, among = (CachedRandomd(noise(), seed=1, id_key="id") for _ in range(2))
    expected = [alone(items()[0])["image"] for _ in range(3)]
    got = []
    for round_ in range(3):
        np.random.seed(round_)
        torch.manual_seed(round_)
        among(items()[1 + round_])
        got.append(among(items()[0])["image"])
    assert all(torch.equal(x, y) for x, y in zip(expected, got, strict=True))


def test_draws_bound_the_number_of_different_results() -> None:
    frozen, two = (CachedRandomd(noise(), seed=1, id_key="id", draws=n) for n in (1, 2))
    assert len({frozen(items()[0])["image"].numpy().tobytes() for _ in range(4)}) == 1
    results = [two(items()[0])["image"] for _ in range(4)]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3]) and not torch.equal(results[0], results[1])


def test_an_epoch_starts_another_series_that_can_be_repeated() -> None:
    transform = CachedRandomd(noise(), seed=1, id_key="id")
    series = []
    for epoch in (0, 1, 0, 1):
        transform.set_epoch(epoch)
        series.append([transform(items()[0])["image"] for _ in range(2)])
    assert torch.equal(series[0][1], series[2][1]) and torch.equal(series[1][0], series[3][0])
    assert not torch.equal(series[0][0], series[1][0])


def test_two_classes_with_one_seed_are_not_drawn_alike() -> None:
    seeds = {CachedRandomd(each, seed=1, id_key="id")._seed_of("a", 0) for each in (noise(), RandFlipd("image"))}
    assert len(seeds) == 2


def test_the_wrapped_transform_is_never_changed() -> None:
    inner = RandRotate90d("image", prob=0.5)
    inner.set_random_state(seed=3)
    before = pickle.dumps(inner)
    CachedRandomd(inner, seed=1, id_key="id")(items()[0])
    assert pickle.dumps(inner) == before


def test_a_copy_shares_the_counts_and_a_pickle_starts_again() -> None:
    transform = CachedRandomd(noise(), seed=1, id_key="id")
    first = transform(items()[0])["image"]
    assert not torch.equal(deepcopy(transform)(items()[0])["image"], first)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(items()[0])["image"], first)


def test_eight_threads_on_one_item_get_eight_different_draws() -> None:
    transform = CachedRandomd(noise(), seed=1, id_key="id")
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(transform(items()[0])["image"].numpy().tobytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one_by_one = CachedRandomd(noise(), seed=1, id_key="id")
    assert len(set(results)) == 8
    assert set(results) == {one_by_one(items()[0])["image"].numpy().tobytes() for _ in range(8)}


@pytest.mark.parametrize("workers", [1, 4])
def test_a_cache_keeps_the_result_and_items_differ(workers: int) -> None:
    transform = Compose([EnsureTyped("image"), CachedRandomd(noise(), seed=1, id_key="id")])
    dataset = CacheDataset(items(), transform, num_workers=workers, progress=False)
    images = [dataset[i]["image"] for i in range(10)]
    assert all(torch.equal(dataset[i]["image"], image) for i, image in enumerate(images))
    assert len({image.numpy().tobytes() for image in images}) == 10


def test_bare_random_transforms_in_a_cache_are_drawn_at_each_access() -> None:
    dataset = CacheDataset(items(2), Compose([EnsureTyped("image"), noise()]), progress=False)
    assert not torch.equal(dataset[0]["image"], dataset[0]["image"])


def smart_rounds(replace_workers: int) -> list[bytes]:
    transform = Compose([EnsureTyped("image"), CachedRandomd(noise(), seed=1, id_key="id")])
    workers = {"num_replace_workers": replace_workers, "num_init_workers": replace_workers}
    dataset = SmartCacheDataset(items(), transform, replace_rate=0.5, cache_num=6, progress=False, **workers)
    results = []
    dataset.start()
    for _ in range(8):
        results += [dataset[i]["image"].numpy().tobytes() for i in range(6)]
        dataset.update_cache()
    dataset.shutdown()
    return results


def test_smart_cache_gives_the_same_images_for_one_and_four_replace_workers_and_new_ones_on_the_way() -> None:
    one, four = smart_rounds(1), smart_rounds(4)
    assert one == four
    assert len(set(one)) > 20  # 10 items, each drawn again whenever it comes back


@pytest.mark.parametrize("value", ["case-0", 7, np.int64(7), Path("a/b.nii.gz"), torch.tensor(7), np.array([7])])
def test_an_item_is_identified_by_text_integer_or_path(value: object) -> None:
    CachedRandomd(noise(), seed=1, id_key="id")({"image": torch.zeros(1, 4, 4), "id": value})


def test_an_integer_identifies_the_same_item_in_every_type() -> None:
    results = [
        CachedRandomd(noise(), seed=1, id_key="id")({"image": torch.zeros(1, 4, 4), "id": value})["image"]
        for value in (7, np.int64(7), torch.tensor(7))
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_loaded_image_is_identified_by_its_file() -> None:
    image = MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": "a.nii.gz"})
    by_image = CachedRandomd(noise(), seed=1, id_key="image")({"image": image})["image"]
    by_name = CachedRandomd(noise(), seed=1, id_key="name")({"image": image, "name": "a.nii.gz"})["image"]
    assert torch.equal(by_image, by_name)


@pytest.mark.parametrize("value", [None, 0.5, torch.zeros(1, 4, 4), ["a"]])
def test_what_identifies_nothing_is_refused_with_the_ways_out(value: object) -> None:
    with pytest.raises(TypeError, match="identified by text, an integer, a path"):
        CachedRandomd(noise(), seed=1, id_key="id")({"image": torch.zeros(1, 4, 4), "id": value})


def test_a_sample_without_id_names_what_it_has() -> None:
    with pytest.raises(KeyError, match="'id' is not in the sample, which has .'image'."):
        CachedRandomd(noise(), seed=1, id_key="id")({"image": torch.zeros(1, 4, 4)})


def test_wrong_arguments_are_refused_at_construction() -> None:
    with pytest.raises(TypeError, match="ScaleIntensityd"):
        CachedRandomd(ScaleIntensityd("image"), seed=1, id_key="id")
    with pytest.raises(ValueError, match="draws must be 1 or more"):
        CachedRandomd(noise(), seed=1, id_key="id", draws=0)


def test_a_whole_compose_can_be_wrapped_and_several_crops_come_back() -> None:
    inner = Compose([noise(), RandSpatialCropSamplesd("image", roi_size=(2, 2), num_samples=3, random_size=False)])
    result = CachedRandomd(inner, seed=1, id_key="id")(items()[0])
    again = CachedRandomd(inner, seed=1, id_key="id")(items()[0])
    assert len(result) == 3
    assert all(torch.equal(x["image"], y["image"]) for x, y in zip(result, again, strict=True))


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: Compose([t, noise()])])
def test_what_it_wraps_is_inverted_by_monai(wrap) -> None:
    rotate = wrap(RandRotate90d("image", prob=1.0))
    transform = Compose([EnsureTyped("image"), RandFlipd("image", prob=1.0), CachedRandomd(rotate, seed=1, id_key="id")])
    image = torch.arange(12.0).reshape(1, 3, 4)
    sample = transform({"image": image, "id": 0})
    sample["pred"] = sample["image"].clone()
    back = Invertd("pred", transform, orig_keys="image")(sample)["pred"]
    assert back.shape == image.shape
    if not isinstance(rotate, Compose):  # noise stays
        assert torch.equal(back.as_tensor(), image)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: Compose([t, RandFlipd("image", prob=0.0)])])
def test_what_was_not_triggered_is_inverted_too_and_the_given_image_gets_no_trace(wrap) -> None:
    cached = CachedRandomd(wrap(RandRotate90d("image", prob=0.0)), seed=1, id_key="id")
    transform = Compose([EnsureTyped("image"), RandFlipd("image", prob=1.0), cached])
    image = torch.arange(12.0).reshape(1, 3, 4)
    sample = transform({"image": image, "id": 0})
    back = Invertd("pred", transform, orig_keys="image")({**sample, "pred": sample["image"].clone()})["pred"]
    assert torch.equal(back.as_tensor(), image)
    original = MetaTensor(image)
    for _ in range(2):
        assert len(cached({"image": original, "id": 0})["image"].applied_operations) > 0
    assert original.applied_operations == []


def test_an_image_that_the_wrapped_transform_does_not_know_is_handed_on_by_reference() -> None:
    other = MetaTensor(torch.zeros(1, 3, 4))
    cached = CachedRandomd(RandFlipd("image", prob=1.0), seed=1, id_key="id")
    assert cached({"image": MetaTensor(torch.zeros(1, 3, 4)), "other": other, "id": 0})["other"] is other


def test_traces_of_an_image_that_is_handed_through_are_not_touched() -> None:
    image = RandFlipd("image", prob=1.0)({"image": MetaTensor(torch.rand(1, 3, 4))})["image"]
    before = deepcopy(image.applied_operations)
    CachedRandomd(RandFlipd("other", prob=1.0), seed=1, id_key="id")({"image": image, "other": MetaTensor(torch.rand(1, 3, 4)), "id": 0})
    assert image.applied_operations == before
