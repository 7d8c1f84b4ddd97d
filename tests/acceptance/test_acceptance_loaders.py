"""The transforms behind MONAI's loaders: threads, forked and spawned workers, seeds, batches, and a training step."""

from __future__ import annotations

import pickle
import threading
from copy import deepcopy

import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch, list_data_collate, pad_list_data_collate
from monai.transforms import Compose, EnsureTyped, PadListDataCollate
from monai.utils import set_determinism

from monai_diffaug.data.thread_loader import RaisingThreadDataLoader
from monai_diffaug.data.transform_hash import transform_hashing
from monai_diffaug.models import registry
from monai_diffaug.transforms.cached_random import CachedRandomd
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.medsam_mask import MedSAMMaskd
from monai_diffaug.transforms.text_prompt import TextPromptd

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning", "ignore:.*use of fork:DeprecationWarning")
STEPS = 2


def images_of(loader: object) -> list[torch.Tensor]:
    """Every image of an epoch, one a sample."""
    return [image.as_subclass(torch.Tensor) for batch in loader for image in batch["image"]]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def by_item(inpaint) -> Compose:
    return Compose([EnsureTyped("image"), CachedRandomd(inpaint(), seed=1, id_key="id")])


@pytest.mark.slow
def test_any_number_of_workers_and_any_batch_size_give_the_same_bytes(inpaint, samples, unet_calls) -> None:
    def run(workers: int, batch_size: int) -> list[torch.Tensor]:
        return images_of(DataLoader(Dataset(samples(8), by_item(inpaint)), num_workers=workers, batch_size=batch_size))

    expected = run(0, 1)
    assert unet_calls.since() == 8 * STEPS
    for workers, batch_size in ((0, 2), (0, 8), (2, 1), (2, 8)):
        assert equal(run(workers, batch_size), expected)
        assert unet_calls.since() == 8 * STEPS


@pytest.mark.slow
def test_epochs_differ_and_repeat_when_told_to_for_any_number_of_workers(inpaint, samples) -> None:
    def epochs(workers: int) -> list[list[torch.Tensor]]:
        transform = by_item(inpaint)
        loader = DataLoader(Dataset(samples(2), transform), num_workers=workers)
        result = []
        for epoch in range(2):
            transform.transforms[1].set_epoch(epoch)
            result.append(images_of(loader))
        return result

    alone, forked = epochs(0), epochs(2)
    assert equal(alone[0], forked[0]) and equal(alone[1], forked[1]) and not equal(alone[0], alone[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_set_determinism_repeats_a_run_and_its_epochs_differ(workers, inpaint, samples) -> None:
    def run(seed: int) -> list[list[torch.Tensor]]:
        set_determinism(seed)
        try:
            loader = DataLoader(Dataset(samples(2), Compose([inpaint()])), num_workers=workers)
            return [images_of(loader) for _ in range(2)]
        finally:
            set_determinism(None)

    first, second, other = run(1), run(1), run(2)
    assert equal(first[0], second[0]) and equal(first[1], second[1])
    assert not equal(first[0], first[1]) and not equal(first[0], other[0])


@pytest.mark.slow
def test_persistent_workers_go_on_from_epoch_to_epoch(inpaint, samples, unet_calls) -> None:
    loader = DataLoader(Dataset(samples(2), Compose([inpaint()])), num_workers=1, persistent_workers=True)
    first, second = images_of(loader), images_of(loader)
    assert unet_calls.total == 4 * STEPS and not equal(first, second)
    del loader


@pytest.mark.slow
def test_a_spawned_worker_is_another_process_that_gives_the_same_bytes(inpaint, samples) -> None:
    expected = images_of(DataLoader(Dataset(samples(2), by_item(inpaint))))
    spawned = images_of(DataLoader(Dataset(samples(2), by_item(inpaint)), num_workers=1, multiprocessing_context="spawn"))
    assert equal(spawned, expected)


def test_the_thread_loader_gives_the_same_bytes_and_raises_what_goes_wrong(inpaint, samples) -> None:
    expected = images_of(DataLoader(Dataset(samples(3), by_item(inpaint))))
    assert equal(images_of(RaisingThreadDataLoader(Dataset(samples(3), by_item(inpaint)))), expected)
    threads = RaisingThreadDataLoader(Dataset(samples(3), by_item(inpaint)), num_workers=2, use_thread_workers=True)
    assert equal(images_of(threads), expected)
    items = samples(3)
    del items[1]["mask"]
    with pytest.raises(RuntimeError) as raised:
        images_of(RaisingThreadDataLoader(Dataset(items, by_item(inpaint))))
    assert "MedSAMMaskd" in str(innermost(raised.value))


def innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.mark.parametrize("collate", [list_data_collate, pad_list_data_collate])
def test_mixed_batches_collate_and_decollate_with_their_records(collate, inpaint, samples) -> None:
    items = samples(6) if collate is list_data_collate else [*samples(3), *samples(3, (44, 52))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # MONAI's loader seeds the transforms from torch's generator
        (batch,) = DataLoader(Dataset(items, Compose([inpaint(prob=0.5)])), batch_size=6, collate_fn=collate)
    applied = batch["image_diffaug"]["applied"]
    assert applied.shape == (6,) and 0 < int(applied.sum()) < 6
    for after, before in zip(decollate_batch(batch), items, strict=True):
        record = after["image_diffaug"]
        types = {name: type(value) for name, value in record.items()}
        assert types["applied"] is bool and types["prompt"] is str and types["n_slices"] in (int, float) and len(record) == 12
        image = PadListDataCollate.inverse(after)["image"]
        assert image.shape == before["image"].shape and torch.equal(image, before["image"]) is not record["applied"]
        assert after["id"] == before["id"]


def test_a_training_step_on_the_output_reaches_the_weights(inpaint, samples) -> None:
    (batch,) = DataLoader(Dataset(samples(2), Compose([inpaint()])), batch_size=2)
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    assert not batch["image"].requires_grad and not batch["image"].is_inference()
    ((network(batch["image"].as_tensor()) - batch["label"].as_tensor()) ** 2).mean().backward()
    assert network.weight.grad is not None and float(network.weight.grad.abs().sum()) > 0


def validated(inpaint) -> LatentValidated:
    return LatentValidated("image", inpaint=inpaint(), model=lambda images: torch.ones_like(images[:, :1]), on_reject="flag")


TRANSFORMS = {
    "medsam": lambda inpaint: MedSAMMaskd("image", mask_key="found", label_key="mask"),
    "prompt": lambda inpaint: TextPromptd("prompt", modality="ultrasound"),
    "inpaint": lambda inpaint: inpaint(),
    "validated": validated,
    "cached": lambda inpaint: CachedRandomd(inpaint(), seed=1, id_key="id"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_instance_is_small_to_pickle_free_to_copy_and_hashes_alike_after_use(name, inpaint, sample) -> None:
    transform = TRANSFORMS[name](inpaint)
    before = transform_hashing(transform)
    transform(sample)
    assert transform_hashing(transform) == before == transform_hashing(deepcopy(transform))
    if name != "validated":  # a lambda does not travel
        assert len(pickle.dumps(transform)) < 100_000
        assert transform_hashing(pickle.loads(pickle.dumps(transform))) == before


@pytest.mark.slow
def test_eight_threads_at_first_use_load_the_model_once(inpaint, sample) -> None:
    registry.clear()
    transforms = [Compose([inpaint()]).set_random_state(seed=1) for _ in range(8)]
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda t=t: results.append(t(sample)["image"])) for t in transforms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.load_count(transforms[0].transforms[0].inpaint.spec) == 1
    assert equal(results, [results[0]] * 8)


def test_workers_that_are_forked_while_the_model_is_being_loaded_do_not_wait_for_ever(inpaint, samples) -> None:
    registry.clear()
    spec = inpaint().inpaint.spec
    inside, leave = threading.Event(), threading.Event()

    def slow(spec: object, device: object) -> object:
        inside.set()
        leave.wait(60)
        return object()

    holder = threading.Thread(target=lambda: registry.shared_model(spec, "cpu", slow), daemon=True)
    holder.start()
    assert inside.wait(10)
    try:
        loader = DataLoader(Dataset(samples(2), by_item(inpaint)), num_workers=1, timeout=60)
        assert len(images_of(loader)) == 2
    finally:
        leave.set()
        holder.join()
        registry.clear()


def test_cuda_in_a_forked_worker_is_one_error_that_names_the_ways_out(inpaint, samples) -> None:
    """Refused before CUDA is touched, so it is the same with and without a GPU."""
    loader = DataLoader(Dataset(samples(1), Compose([inpaint(device="cuda")])), num_workers=1, timeout=60)
    with pytest.raises(RuntimeError, match="(?s)WorkerDeviceError.*num_workers=0.*spawn.*CachedRandomd"):
        images_of(loader)
