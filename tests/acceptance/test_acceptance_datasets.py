"""The transforms inside MONAI's data sets; where a data set caches, the number of model calls is what is asserted."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import (
    CacheDataset,
    CacheNTransDataset,
    Dataset,
    GDSDataset,
    LMDBDataset,
    PersistentDataset,
    SmartCacheDataset,
    list_data_collate,
)
from monai.data import dataset as monai_dataset
from monai.transforms import Compose, EnsureTyped
from monai.utils import convert_to_tensor

from monai_diffaug.data.stored_keys import PackKeysd, UnpackKeysd, with_placeholders
from monai_diffaug.data.transform_hash import transform_hashing
from monai_diffaug.transforms.cached_random import CachedRandomd
from monai_diffaug.transforms.medsam_mask import MedSAMMaskd

STEPS = 2
ARRAYS = ("image", "mask", "label")


def bytes_of(dataset: object) -> list[bytes]:
    return [dataset[i]["image"].as_subclass(torch.Tensor).numpy().tobytes() for i in range(len(dataset))]


def cached(transform: object, **options: object) -> Compose:
    return Compose([EnsureTyped("image"), CachedRandomd(transform, seed=1, id_key="id", **options)])


def test_a_dataset_draws_again_at_each_access(inpaint, samples, unet_calls) -> None:
    dataset = Dataset(samples(3), Compose([inpaint()]).set_random_state(seed=1))
    epochs = [bytes_of(dataset) for _ in range(2)]
    assert unet_calls.total == 2 * 3 * STEPS
    assert len({*epochs[0], *epochs[1]}) == 6


def test_a_cache_dataset_cannot_cache_the_bare_transform(inpaint, samples, unet_calls) -> None:
    dataset = CacheDataset(samples(3), Compose([inpaint()]), progress=False)
    bytes_of(dataset), bytes_of(dataset)
    assert unet_calls.total == 2 * 3 * STEPS


@pytest.mark.parametrize("workers", [1, 4])
def test_a_cache_dataset_calls_the_model_once_an_item_with_any_number_of_workers(workers, inpaint, samples, unet_calls) -> None:
    dataset = CacheDataset(samples(5), cached(inpaint()), num_workers=workers, progress=False)
    assert unet_calls.since() == 5 * STEPS
    first = bytes_of(dataset)
    assert bytes_of(dataset) == first and unet_calls.since() == 0
    one_by_one = Dataset(samples(5), cached(inpaint()))
    assert bytes_of(one_by_one) == first


def test_a_runtime_cache_fills_at_first_use(inpaint, samples, unet_calls) -> None:
    dataset = CacheDataset(samples(3), cached(inpaint()), runtime_cache=True, progress=False)
    assert unet_calls.since() == 0
    first = bytes_of(dataset)
    assert unet_calls.since() == 3 * STEPS
    assert bytes_of(dataset) == first and unet_calls.since() == 0


def test_a_cache_that_is_not_copied_is_not_written_to(inpaint, samples) -> None:
    items = samples(2)
    dataset = CacheDataset(items, Compose([EnsureTyped("image"), inpaint()]), copy_cache=False, progress=False)
    edited = [dataset[i] for i in range(2)]
    for i, item in enumerate(items):
        cached = dataset._cache[i]
        assert all(torch.equal(cached[key], item[key]) for key in ("image", "mask", "label")) and "image_diffaug" not in cached
        assert edited[i]["image_diffaug"]["applied"] and not torch.equal(edited[i]["image"], item["image"])


def test_a_cached_medsam_mask_costs_one_encoder_call_an_item_and_not_one_an_epoch(samples, sam_calls) -> None:
    items = [{**item, "label": item["mask"]} for item in samples(3)]
    masks = MedSAMMaskd("image", mask_key="found", label_key="label")
    bare = CacheDataset(items, Compose([EnsureTyped("image"), masks]), progress=False)
    frozen = CacheDataset(items, cached(masks, draws=1), progress=False)
    assert sam_calls.since() == 3
    for dataset, expected in ((bare, 2 * 3), (frozen, 0)):
        for _ in range(2):
            assert all(dataset[i]["found"].shape == (1, 40, 44) for i in range(3))
        assert sam_calls.since() == expected


def smart_run(inpaint, items, replace_workers: int) -> list[bytes]:
    """Five epochs of 8 of 12 items, two of them replaced between epochs: 40 training samples."""
    transform = cached(inpaint(num_inference_steps=1))
    dataset = SmartCacheDataset(
        items,
        transform,
        cache_num=8,
        replace_rate=0.25,
        num_init_workers=replace_workers,
        num_replace_workers=replace_workers,
        progress=False,
    )
    dataset.start()
    images = bytes_of(dataset)
    for _ in range(4):
        dataset.update_cache()
        images += bytes_of(dataset)
    dataset.shutdown()
    return images


def test_a_smart_cache_serves_forty_samples_for_eighteen_model_calls_alike_for_one_and_four_workers(inpaint, samples, unet_calls) -> None:
    one = smart_run(inpaint, samples(12), 1)
    assert len(one) == 40 and unet_calls.since() == 18
    assert smart_run(inpaint, samples(12), 4) == one
    assert unet_calls.since() == 18
    assert len(set(one)) == 16  # 8 at the start, 2 more for each of 4 updates


def test_a_persistent_dataset_on_the_same_folder_calls_no_model_and_keeps_the_record(inpaint, samples, unet_calls, tmp_path: Path) -> None:
    def dataset(**options: object) -> PersistentDataset:
        transform = Compose([CachedRandomd(inpaint(**options), seed=1, id_key="id")])
        return PersistentDataset(samples(2), transform, tmp_path, hash_func=by_id, hash_transform=transform_hashing)

    first = [dataset()[i] for i in range(2)]
    assert unet_calls.since() == 2 * STEPS
    again = [dataset()[i] for i in range(2)]
    assert unet_calls.since() == 0
    for new, old in zip(again, first, strict=True):
        assert torch.equal(torch.as_tensor(new["image"]), torch.as_tensor(old["image"]))
        assert new["image_diffaug"] == old["image_diffaug"] and new["prompt"] == old["prompt"]
    dataset(strength=0.5)[0]
    assert unet_calls.since() > 0  # another option is another result, not a stale file


def by_id(item: dict[str, object]) -> bytes:
    return str(item["id"]).encode()


def test_a_persistent_dataset_with_meta_data_needs_files_that_hold_more_than_weights(inpaint, samples, unet_calls, tmp_path: Path) -> None:
    def dataset() -> PersistentDataset:
        transform = Compose([CachedRandomd(inpaint(), seed=1, id_key="id")])
        return PersistentDataset(samples(1), transform, tmp_path, hash_func=by_id, track_meta=True, weights_only=False)

    affine = dataset()[0]["image"].affine
    assert unet_calls.since() == STEPS
    assert torch.equal(dataset()[0]["image"].affine, affine) and unet_calls.since() == 0


def test_cache_n_trans_caches_the_bare_transform(inpaint, samples, unet_calls, tmp_path: Path) -> None:
    dataset = CacheNTransDataset(samples(2), Compose([EnsureTyped("image"), inpaint()]), 2, tmp_path, hash_func=by_id)
    first = bytes_of(dataset)
    assert unet_calls.since() == 2 * STEPS
    assert bytes_of(dataset) == first and unet_calls.since() == 0


def test_an_lmdb_dataset_computes_each_item_once(inpaint, samples, unet_calls, tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    dataset = LMDBDataset(
        samples(2),
        Compose([CachedRandomd(inpaint(), seed=1, id_key="id")]),
        tmp_path,
        hash_func=by_id,
        progress=False,
        lmdb_kwargs={"map_size": 2**26},
    )
    assert unet_calls.since() == 2 * STEPS
    first = bytes_of(dataset)
    assert bytes_of(dataset) == first and unet_calls.since() == 0
    assert bool(dataset[0]["image_diffaug"]["applied"])  # LMDBDataset turns numbers into tensors


def test_packed_keys_come_out_of_an_lmdb_dataset_as_they_went_in(inpaint, samples, unet_calls, tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    packed = ("id", "prompt", "image_diffaug")
    transform = [CachedRandomd(inpaint(), seed=1, id_key="id", draws=1), PackKeysd(packed), UnpackKeysd(packed, array_keys=ARRAYS)]
    items = samples(2)
    dataset = LMDBDataset(items, Compose(transform), tmp_path, hash_func=by_id, progress=False, lmdb_kwargs={"map_size": 2**26})
    direct = Dataset(items, Compose(transform))
    assert [dataset[i]["image_diffaug"] for i in range(2)] == [direct[i]["image_diffaug"] for i in range(2)]
    assert dataset[0]["image_diffaug"]["applied"] is True and dataset[0]["prompt"] == items[0]["prompt"]
    assert unet_calls.total == 2 * 2 * STEPS


@pytest.fixture
def storage_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain files for kvikio and numpy for cupy: MONAI's own GDSDataset runs, without direct storage."""

    class Cupy:
        class cuda:  # noqa: N801
            Device = staticmethod(lambda index: contextlib.nullcontext())

        empty = staticmethod(np.empty)

    class Storage:
        fromfile = staticmethod(lambda file, dtype, like: np.fromfile(file, dtype=dtype))
        tofile = staticmethod(lambda array, file: np.asarray(array).tofile(file))

    def on_cpu(data: object, *args: object, device: object = None, **options: object) -> object:
        return convert_to_tensor(data, *args, **options)

    monkeypatch.setattr(monai_dataset, "cp", Cupy)
    monkeypatch.setattr(monai_dataset, "kvikio_numpy", Storage)
    monkeypatch.setattr(monai_dataset, "convert_to_tensor", on_cpu)


@pytest.mark.usefixtures("storage_without_gpu")
def test_a_gds_dataset_never_caches_an_item_with_text(inpaint, samples, unet_calls, tmp_path: Path) -> None:
    """The limit that PackKeysd is for: the item has a prompt and a record, so nothing is stored and nothing is said."""
    dataset = GDSDataset(samples(1), cached(inpaint()), tmp_path, device=0, hash_func=by_id)
    for _ in range(3):
        assert dataset[0]["image_diffaug"]["applied"] is True
    assert unet_calls.total == 3 * STEPS


@pytest.mark.usefixtures("storage_without_gpu")
def test_a_gds_dataset_with_packed_keys_computes_once_and_keeps_every_key(inpaint, samples, unet_calls, tmp_path: Path) -> None:
    packed = ("id", "prompt", "image_diffaug")
    transform = [CachedRandomd(inpaint(), seed=1, id_key="id"), PackKeysd(packed), UnpackKeysd(packed, array_keys=ARRAYS)]
    dataset = GDSDataset(with_placeholders(samples(1), ("image_diffaug",)), Compose(transform), tmp_path, device=0, hash_func=by_id)
    made, read = dataset[0], dataset[0]
    assert unet_calls.total == STEPS
    assert made.keys() == read.keys() and made["image_diffaug"] == read["image_diffaug"] and read["id"] == "case-0"
    assert all(torch.equal(made[key], read[key]) and type(made[key]) is type(read[key]) for key in ARRAYS)
    assert torch.equal(made["image"].affine, read["image"].affine)
    assert list_data_collate([made, read])["image_diffaug"]["applied"].tolist() == [True, True]


def test_a_nested_compose_stops_every_cache_and_flatten_is_the_way_out(inpaint, samples, unet_calls) -> None:
    nested = Compose([Compose([EnsureTyped("image"), CachedRandomd(inpaint(), seed=1, id_key="id", draws=1)])])
    dataset = CacheDataset(samples(1), nested, progress=False)
    assert unet_calls.since() == 0
    bytes_of(dataset), bytes_of(dataset)
    assert unet_calls.since() == 2 * STEPS
    bytes_of(CacheDataset(samples(1), nested.flatten(), progress=False))
    assert unet_calls.since() == STEPS


def test_cached_and_fresh_samples_collate(inpaint, samples) -> None:
    items = samples(4)
    transform = Compose([CachedRandomd(inpaint(prob=0.5), seed=3, id_key="id")])
    batch = list_data_collate([CacheDataset(items, transform, progress=False)[i] for i in range(4)])
    assert 0 < int(batch["image_diffaug"]["applied"].sum()) < 4
