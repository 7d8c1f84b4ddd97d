"""What only a real GPU shows: numbers, memory, streams, graphs, half precision. All of it is skipped without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from monai.data import CacheDataset, MetaTensor, list_data_collate
from torch import Tensor

from monai_diffaug.data.thread_loader import RaisingThreadDataLoader
from monai_diffaug.edit.options import ControlNet, InpaintOptions, Noise, Run, SemanticController, SoftEdge
from monai_diffaug.models import registry
from monai_diffaug.transforms.batch import BatchLocalInpaint
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMask
from monai_diffaug.transforms.text_prompt import TextPromptd

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CLOSE = {"rtol": 0, "atol": 5e-3}  # of images from 0 to 1; TF32 and other kernels
HALF = {"rtol": 0, "atol": 0.25}  # bfloat16 over twelve steps: the same lesion, not the same grey values
PROMPT = "ultrasound of breast, malignant mass"


@pytest.fixture(autouse=True)
def empty_gpu() -> Iterator[None]:
    yield
    registry.clear()
    torch.cuda.empty_cache()


def picture(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros_like(image, dtype=torch.uint8)
    mask[:, 20:44, 24:52, ...] = 1
    return image, mask


def edit(image: Any, mask: Any, seed: int = 3, **options: Any) -> Any:
    options = {"num_inference_steps": 4, "window": (0.0, 1.0), **options}
    result = DiffusionLocalInpaint(**options).apply(image, mask, PROMPT, seed=seed)
    assert result.record["applied"], result.record["reason"]
    return result.image


def far_from(mask: Tensor) -> Tensor:
    grown = torch.nn.functional.max_pool2d(mask.float()[None], 25, 1, 12)[0]
    return grown == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0},
        {"strength": 0.5},
        {"options": InpaintOptions(noise=Noise(source="inverted", scale=0.5))},
        {"options": InpaintOptions(soft_edge=SoftEdge(width_px_at_512=0))},
        {"options": InpaintOptions(control=ControlNet())},
        {"options": InpaintOptions(control=SemanticController())},
    ],
)
def test_an_edit_on_the_gpu_is_that_of_the_cpu(options: dict[str, Any]) -> None:
    image, mask = picture(96, 96)
    on_gpu = edit(image.cuda(), mask, **options)
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), edit(image, mask, **options), **CLOSE)
    assert torch.equal(on_gpu.cpu()[far_from(mask)], image[far_from(mask)])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_paints_the_same_lesion(dtype: str) -> None:
    image, mask = picture(96, 96)
    half = edit(image.cuda(), mask, options=InpaintOptions(run=Run(dtype=dtype)), num_inference_steps=12).cpu()
    full = edit(image, mask, num_inference_steps=12)
    torch.testing.assert_close(half[mask > 0].mean(), full[mask > 0].mean(), rtol=0, atol=0.05)
    torch.testing.assert_close(half, full, **HALF)


def test_graphs_and_compilation_do_not_change_an_edit() -> None:
    image, mask = picture(96, 96)
    plain = edit(image.cuda(), mask)
    compiled = edit(image.cuda(), mask, options=InpaintOptions(run=Run(compile=True)))
    torch.testing.assert_close(compiled, plain, **CLOSE)
    torch.testing.assert_close(edit(image.cuda(), mask, options=InpaintOptions(run=Run(compile=True))), compiled, rtol=0, atol=1e-5)


def test_a_ct_volume_keeps_its_type_device_and_grid_and_the_batch_size_changes_nothing() -> None:
    image, mask = picture(96, 96, 9)
    volume = MetaTensor((image * 1000 - 500).round().to(torch.int16), affine=torch.diag(torch.tensor([0.8, 0.8, 3.0, 1.0]))).cuda()
    results = [
        edit(volume, mask, window=(-500, 500), options=InpaintOptions(run=Run(slice_batch_size=size)), guidance_scale=3.0)
        for size in (1, 4, None)
    ]
    for result in results:
        assert result.dtype == torch.int16 and result.device.type == "cuda" and torch.equal(result.affine, volume.affine)
        assert int((result.as_tensor().int() - results[0].as_tensor().int()).abs().max()) <= 5  # of a window of 1000 HU


def test_a_full_memory_halves_the_batch_and_keeps_the_noise() -> None:
    image, mask = picture(256, 256, 48)
    plain = edit(image.cuda(), mask, num_inference_steps=1, guidance_scale=1.0)
    registry.clear()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_allocated() + 600e6) / total))
    try:
        options = InpaintOptions(run=Run(slice_batch_size=48))
        tight = edit(image.cuda(), mask, num_inference_steps=1, guidance_scale=1.0, options=options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(tight, plain, **CLOSE)


def test_masks_and_verdicts_on_the_gpu_are_those_of_the_cpu() -> None:
    image, label = picture(96, 96)
    image[label > 0] *= 0.3
    ours, theirs = (MedSAMMask(min_iou=0.0).apply(each, label, seed=1) for each in (image.cuda(), image))
    assert float((ours.cpu() == theirs).float().mean()) > 0.995
    on_gpu, on_cpu = (LatentValidate()(each, label, None, seed=1) for each in (image.cuda(), image))
    assert on_gpu.score == pytest.approx(on_cpu.score, abs=0.02)


def test_an_edit_in_a_cached_gpu_data_set_trains_a_network() -> None:
    samples = []
    for seed in range(4):
        image, mask = picture(64, 64, seed=seed)
        samples.append({"image": MetaTensor(image).cuda(), "mask": MetaTensor(mask).cuda(), "label": MetaTensor(mask).cuda()})
    prompt = TextPromptd("prompt", modality="ultrasound", finding="malignant mass")
    paint = DiffusionLocalInpaintd("image", label_key="label", num_inference_steps=2, prob=0.5).set_random_state(seed=0)
    network = torch.nn.Conv2d(1, 1, 3, padding=1).cuda()
    optimizer = torch.optim.Adam(network.parameters())
    loader = RaisingThreadDataLoader(CacheDataset(samples, lambda d: paint(prompt(d)), copy_cache=False), batch_size=2, num_workers=0)
    before = [sample["image"].clone() for sample in samples]
    for batch in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(batch["image"]), batch["label"].float())
        torch.autograd.backward(loss)
        optimizer.step()
        assert batch["image"].device.type == "cuda" and torch.isfinite(loss)
    assert all(torch.equal(old, sample["image"]) for old, sample in zip(before, samples, strict=True))


def test_a_batch_on_the_gpu_is_edited_together() -> None:
    samples = []
    for seed in range(3):
        image, mask = picture(64, 64, seed=seed)
        samples.append({"image": image.cuda(), "mask": mask.cuda(), "label": mask.cuda(), "prompt": PROMPT})
    edit_batch = BatchLocalInpaint(DiffusionLocalInpaintd("image", label_key="label", num_inference_steps=2), seed=0)
    batch = edit_batch(list_data_collate(samples))
    assert batch["image"].device.type == "cuda" and batch["image"].shape == (3, 1, 64, 64) and all(batch["image_diffaug"]["applied"])


def test_two_threads_edit_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    pairs = [picture(64, 64, seed=seed) for seed in range(4)]
    transform = DiffusionLocalInpaint(num_inference_steps=3, window=(0.0, 1.0))

    def run(i: int) -> Tensor:
        image, mask = pairs[i]
        return transform.apply(image.cuda(), mask, PROMPT, seed=i).image.cpu()

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    for i, result in enumerate(together):
        torch.testing.assert_close(result, run(i), **CLOSE)
