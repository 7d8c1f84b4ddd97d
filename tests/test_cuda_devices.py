"""What runs on a GPU, run on a pretended one: no test here needs a GPU.

``tests/pretend_cuda.py`` says what the pretence checks (devices of operands, NumPy, generators, types without kernels, waiting while a
graph is captured) and what it cannot (numbers, memory, streams, NCCL, autocast's casts, other threads). Results must be those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from monai_diffaug.benchmark import models as benchmark_models
from monai_diffaug.benchmark.inpainting import gates_of
from monai_diffaug.benchmark.official_medsam import official_masks
from monai_diffaug.benchmark.settings import EditSettings
from monai_diffaug.benchmark.timing import stopwatch
from monai_diffaug.benchmark.volumes import make_volume
from monai_diffaug.errors import WorkerDeviceError
from monai_diffaug.lesion_bank import LesionBank
from monai_diffaug.models import registry
from monai_diffaug.models.controlnet import ControlledDenoiser, build_controlnet
from monai_diffaug.models.cuda_graphs import GraphedDenoiser
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.latent_screen import ScreenConfig, ScreenNetwork
from monai_diffaug.models.medsam import load_medsam
from monai_diffaug.models.registry import ModelSpec, load_count
from monai_diffaug.models.semantic_controller import (
    SemanticDenoiser,
    build_semantic_model,
    load_semantic_controller,
    save_semantic_controller,
)
from monai_diffaug.sampling.inversion import invert_latents
from monai_diffaug.slice_batches import batch_sizes
from monai_diffaug.transforms.batch import BatchLocalInpaint, PrepareBatchInpaint
from monai_diffaug.transforms.edge_map import EdgeMap
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.latent_validated import LatentValidated
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.local_inpaintd import DiffusionLocalInpaintd
from monai_diffaug.transforms.medsam_mask import MedSAMMask
from monai_diffaug.transforms.patch_merge import RandPatchMerge
from monai_diffaug.transforms.place_mask import PlaceMaskd
from monai_diffaug.transforms.soft_mask import SoftMask
from tests.pretend_cuda import Gpu, plain_cpu, pretended_gpus

GPU, OTHER, CPU = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")
SCHEDULERS = {
    "DDIMScheduler": 0.6,
    "DPMSolverMultistepScheduler": 1.0,
    "UniPCMultistepScheduler": 0.6,
    "EulerDiscreteScheduler": 1.0,
    "LCMScheduler": 0.6,
}  # with the strengths that they are run with
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-3}  # of images from 0 to 1


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with pretended_gpus(2) as pretended:
        yield pretended


@pytest.fixture(scope="module", autouse=True)
def models_are_dropped_at_the_end() -> Iterator[None]:
    yield
    registry.clear()
    loaded.cache_clear()


def picture(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An image in [0, 1] and a mask; of a volume the mask touches two slices."""
    image = torch.rand(1, *(shape or (48, 48)), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros_like(image, dtype=torch.uint8)
    mask[:, 12:30, 16:34, ...] = 1
    if image.ndim == 4:
        mask[..., 0], mask[..., 3:] = 0, 0
    return image, mask


def on_cpu(array: Any) -> Tensor:
    return torch.as_tensor(array.cpu() if isinstance(array, Tensor) else array).as_subclass(Tensor)


def edited(image: Any, mask: Any, model: Any, seed: int = 3, **options: Any) -> Any:
    transform = DiffusionLocalInpaint(model, **{"num_inference_steps": 2, "window": (0.0, 1.0), **options})
    edit = transform.apply(image, mask, "a cyst", seed=seed)
    assert edit.record["applied"], edit.record["reason"]
    return edit.image


def edited_on_cpu(*args: Any, **options: Any) -> Tensor:
    with plain_cpu():
        return on_cpu(edited(*args, **options))


@cache
def loaded(folder: str, device: torch.device) -> Inpainter:
    """Not to be changed."""
    return load_inpainter(ModelSpec("inpainter", folder), device)


@pytest.fixture(scope="module")
def steering(random_inpainter: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Folders of a ControlNet and of a semantic controller for the random model."""
    model, folder = loaded(random_inpainter, CPU), tmp_path_factory.mktemp("steering")
    build_controlnet(model.unet, model.factor).save_pretrained(folder / "controlnet")
    semantic = build_semantic_model(model, grid=4)
    save_semantic_controller(semantic.config, semantic.parts, folder / "semantic")
    return {"controlnet": {"controlnet": str(folder / "controlnet")}, "semantic": {"semantic_controller": str(folder / "semantic")}}


# the pretence itself

MIXED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum of two": lambda here, there: here + there,
    "sum with a scalar of the cpu": lambda here, there: here + torch.tensor(2.0),
    "sum of the cpu with a scalar of the gpu": lambda here, there: there + torch.ones((), device="cuda"),
    "cat": lambda here, there: torch.cat([here, there]),
    "matrix product": lambda here, there: here @ there.T,
    "where": lambda here, there: torch.where(here > 0, here, there),
    "where with a mask of the cpu": lambda here, there: torch.where(there > 0, here, here),
    "index of the cpu": lambda here, there: here[torch.tensor([1, 0])],
    "index_select": lambda here, there: here.index_select(0, torch.tensor([1])),
    "copy into": lambda here, there: here.copy_(there),
    "assignment of a row": lambda here, there: here.__setitem__(0, there[0]),
    "masked_fill": lambda here, there: here.masked_fill(there > 0, 1.0),
    "lerp": lambda here, there: torch.lerp(here, there, 0.5),
    "linear": lambda here, there: torch.nn.functional.linear(here, there),
    "layer_norm": lambda here, there: torch.nn.functional.layer_norm(here, (3,), there[0]),
    "to": lambda here, there: here + there.to(here.device),
}


def refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (RuntimeError, TypeError):
        return True
    return False


@pytest.mark.parametrize("name", MIXED)
def test_the_pretence_refuses_what_torchs_fake_tensors_refuse(name: str) -> None:
    with FakeTensorMode():
        fake = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
        expected = refused(lambda: MIXED[name](*fake))
    with pretended_gpus():
        own = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
        assert refused(lambda: MIXED[name](*own)) == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.ones(2, device="cuda").numpy(),
        lambda: np.asarray(torch.ones(2, device="cuda")),
        lambda: np.asarray(MetaTensor(torch.ones(1, 2, 2)).to("cuda")),
        lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
        lambda: torch.empty(2, device="cuda").normal_(generator=torch.Generator()),
        lambda: torch.ones(1, 2, 2, dtype=torch.long, device="cuda").bmm(torch.ones(1, 2, 2, dtype=torch.long, device="cuda")),
        lambda: torch.ones(3)[torch.zeros(2, dtype=torch.long, device="cuda")],
        lambda: torch.ones(2, device="cuda:0") + torch.ones(2, device="cuda:1"),
        lambda: torch.nn.Linear(2, 2).to("cuda")(torch.ones(1, 2)),
    ],
)
def test_the_pretence_refuses_what_a_gpu_refuses(gpu: Gpu, call: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        call()


# where data and model are


@pytest.mark.parametrize(
    ("where", "device"), [("cpu", "cuda"), ("cuda", None), ("cuda", "cuda:0"), ("cuda", "cpu"), ("cuda:1", "cuda:0"), ("numpy", "cuda")]
)
def test_an_edit_comes_back_where_its_image_was(gpu: Gpu, random_inpainter: str, where: str, device: str | None) -> None:
    image, mask = picture()
    given = image.numpy() if where == "numpy" else MetaTensor(image, affine=torch.eye(4)).to(where)
    result = edited(given, mask, random_inpainter, device=device)
    assert type(result) is type(given) and getattr(result, "device", CPU) == getattr(given, "device", CPU)
    assert torch.equal(on_cpu(result)[:, :2], image[:, :2])
    torch.testing.assert_close(on_cpu(result), edited_on_cpu(image, mask, random_inpainter), **CLOSE)


def test_label_mask_and_volume_may_be_on_different_devices(gpu: Gpu, random_inpainter: str) -> None:
    image, mask = picture(32, 40, 5)
    volume = MetaTensor((image * 2000 - 1000).to(torch.int16), affine=torch.diag(torch.tensor([-1.0, 1, 2, 1]))).to("cuda")
    inpaint = DiffusionLocalInpaint(random_inpainter, num_inference_steps=2, noise_rho=0.5)
    edit = inpaint.apply(volume, mask, [(0.5, "a cyst"), (0.5, "a mass")], mask.to(torch.uint8), seed=1)
    assert edit.image.device == GPU and edit.image.dtype == torch.int16 and edit.label.device == CPU
    alone = inpaint.apply(volume.cpu(), mask, [(0.5, "a cyst"), (0.5, "a mass")], seed=1)
    assert (on_cpu(edit.image).int() - on_cpu(alone.image).int()).abs().max() <= 2
    assert torch.equal(on_cpu(edit.image)[..., 0], on_cpu(volume)[..., 0])
    assert inpaint.soft_region(volume, mask).shape == mask.shape


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (4, {"strength": 0.5}),
        (9, {"noise_source": "inverted", "noise_scale": 0.3, "num_inference_steps": 1}),
        (4, {"noise_source": "inverted", "strength": 0.5}),
        (9, {"guidance_interval": (0.0, 0.5), "soft_width": 0.0}),
        (9, {"soft_width_mm": 1.5, "roi": False, "guidance_scale": 1.0}),
    ],
)
def test_every_option_gives_on_a_gpu_what_it_gives_on_the_cpu(
    gpu: Gpu, random_inpainter: str, random_inpainter_4ch: str, options: dict[str, Any], channels: int
) -> None:
    model = random_inpainter if channels == 9 else random_inpainter_4ch
    image, mask = picture()
    expected = edited_on_cpu(image, mask, model, **options)
    torch.testing.assert_close(on_cpu(edited(image.to("cuda"), mask, model, **options)), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("name", "strength"), SCHEDULERS.items())
def test_every_scheduler_runs_on_a_gpu_and_a_step_waits_for_nothing(gpu: Gpu, random_inpainter: str, name: str, strength: float) -> None:
    import diffusers

    live = {device: benchmark_models.with_scheduler(loaded(random_inpainter, device), getattr(diffusers, name)) for device in (CPU, GPU)}
    image, mask = picture()
    expected = edited_on_cpu(image, mask, live[CPU], num_inference_steps=2, strength=strength)
    results, waits = [], []
    for steps in (2, 4):
        before = gpu.waits
        results.append(edited(image.to(GPU), mask, live[GPU], num_inference_steps=steps, strength=strength))
        waits.append(gpu.waits - before)
    torch.testing.assert_close(on_cpu(results[0]), expected, rtol=0, atol=1e-2)
    assert waits[1] == waits[0] or name == "LCMScheduler"  # diffusers' own LCM step reads the timestep


@pytest.mark.parametrize(("dtype", "name"), [("float16", ""), ("float16", "controlnet"), ("bfloat16", "semantic")])
def test_half_precision_runs_with_all_that_steers(gpu: Gpu, random_inpainter: str, steering: Any, dtype: str, name: str) -> None:
    image, mask = picture()
    result = edited(image.to("cuda"), mask, random_inpainter, dtype=dtype, num_inference_steps=1, **steering.get(name, {}))
    assert result.device == GPU and result.dtype == torch.float32 and bool(torch.isfinite(result).all())


@pytest.mark.parametrize("name", ["controlnet", "semantic"])
def test_what_steers_gives_on_a_gpu_what_it_gives_on_the_cpu(gpu: Gpu, random_inpainter: str, steering: Any, name: str) -> None:
    image, mask = picture()
    expected = edited_on_cpu(image, mask, random_inpainter, **steering[name])
    torch.testing.assert_close(on_cpu(edited(image.to("cuda"), mask, random_inpainter, **steering[name])), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("name", "dtype"), [("controlnet", torch.float32), ("semantic", torch.bfloat16)])
def test_what_steers_goes_where_a_live_inpainter_is(gpu: Gpu, random_inpainter: str, steering: Any, name: str, dtype: torch.dtype) -> None:
    live = benchmark_models.in_precision(loaded(random_inpainter, GPU), dtype)
    image, mask = picture()
    assert edited(image, mask, live, num_inference_steps=1, **steering[name]).device == CPU


def test_a_live_pipeline_may_keep_vae_and_text_encoder_in_float32(gpu: Gpu, random_inpainter: str) -> None:
    model = loaded(random_inpainter, GPU)
    half = replace(benchmark_models.in_precision(model, torch.bfloat16), vae=model.vae, text_encoder=model.text_encoder)
    image, mask = picture()
    assert edited(image, mask, half).device == CPU
    network = build_controlnet(half.unet, half.factor).to(GPU, torch.float32)
    control = ControlledDenoiser(half, network, torch.zeros(1, 1, 64, 64))
    latents = torch.zeros(1, 9, 16, 16, device=GPU, dtype=torch.bfloat16)
    assert control(latents, torch.tensor(5, device=GPU), half.encode_text(["a"])).dtype == torch.bfloat16


def test_text_states_follow_a_model_that_is_moved(gpu: Gpu, random_inpainter: str) -> None:
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)
    assert model.encode_text(["a"]).device == CPU
    for part in (model.unet, model.vae, model.text_encoder):
        part.to("cuda", torch.bfloat16)
    moved = model.encode_text(["a", "b"])
    assert moved.device == GPU and moved.dtype == torch.bfloat16


def test_an_inversion_takes_a_scheduler_that_a_pipeline_has_moved(gpu: Gpu, random_inpainter_4ch: str) -> None:
    model = loaded(random_inpainter_4ch, GPU)
    clean = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(GPU)
    model.scheduler.add_noise(clean, clean, torch.tensor([5], device=GPU))
    assert model.scheduler.alphas_cumprod.device == GPU
    noise = invert_latents(model.denoise, model.scheduler, clean=clean, context=model.encode_text(["a"]), num_inference_steps=2).noise
    assert noise.device == GPU and bool(torch.isfinite(noise).all())


def test_a_semantic_controller_is_moved_to_its_inpainter_or_says_where_it_is(gpu: Gpu, random_inpainter: str) -> None:
    here, there = (loaded(random_inpainter, device) for device in (CPU, GPU))
    semantic = build_semantic_model(here, grid=4)
    images, hard = torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    with pytest.raises(ValueError, match="cpu.*the inpainter on.*cuda"):
        SemanticDenoiser(there, semantic, images=images, hard=hard, context=there.encode_text(["a"]))
    moved = load_semantic_controller(registry.spec_of("semantic_controller", semantic), GPU)
    denoise = SemanticDenoiser(there, moved, images=images, hard=hard, context=there.encode_text(["a"]))
    assert denoise(torch.zeros(1, 9, 16, 16, device=GPU), torch.tensor(5, device=GPU), there.encode_text(["a"])).device == GPU


def test_loads_are_counted_under_a_name_without_a_number(gpu: Gpu, random_inpainter: str) -> None:
    spec = ModelSpec("inpainter", random_inpainter, "bfloat16")
    registry.shared_model(spec, "cuda", load_inpainter)
    assert load_count(spec, "cuda") == load_count(spec, "cuda:0") == 1 and load_count(spec, "cuda:1") == 0


def test_a_live_model_of_a_gpu_is_refused_in_a_forked_worker(gpu: Gpu, random_inpainter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = picture()
    transform = DiffusionLocalInpaint(loaded(random_inpainter, GPU))
    monkeypatch.setattr(registry, "_forked", True)
    with pytest.raises(WorkerDeviceError, match="on its GPU inside the forked process"):
        transform.apply(image, mask, "a cyst", seed=1)


def test_a_thread_of_a_process_takes_the_gpu_of_that_process(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def device_in_a_thread() -> torch.device:
        with ThreadPoolExecutor(1) as pool, pretended_gpus(2):
            return pool.submit(registry._numbered, torch.device("cuda")).result()

    assert device_in_a_thread() == GPU
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_in_a_thread() == OTHER and registry._numbered(torch.device("cuda")) == GPU
    monkeypatch.setenv("LOCAL_RANK", "2")  # the process sees GPU 0 alone
    assert device_in_a_thread() == GPU


# masks, verdicts, batches and the transforms without a model


@pytest.mark.parametrize(("where", "device"), [("cpu", "cuda"), ("cuda", None), ("cuda:1", "cuda:0"), ("cuda", "cpu")])
def test_medsam_masks_come_back_where_the_image_was(gpu: Gpu, where: str, device: str | None) -> None:
    image, label = picture()
    options: dict[str, Any] = {"min_iou": 0.0, "window": (0.0, 1.0), "dtype": "bfloat16" if where == "cpu" else "float32"}
    mask = MedSAMMask(device=device, **options).apply(image.to(where), label, seed=1)
    assert mask.device == torch.device(where if where != "cuda" else "cuda:0")
    with plain_cpu():
        assert torch.equal(on_cpu(mask), MedSAMMask(**options).apply(image, label, seed=1))


def test_a_medsam_mask_walks_through_a_volume_on_a_gpu(gpu: Gpu) -> None:
    image, label = picture(32, 40, 4)
    masker = MedSAMMask(propagate=True, min_iou=0.0)
    on_gpu = masker.apply(MetaTensor(image, affine=torch.eye(4)).to("cuda"), label, seed=1)
    assert on_gpu.device == GPU and torch.equal(on_cpu(on_gpu), masker.apply(image, label, seed=1))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_verdict_on_a_gpu_is_that_of_the_cpu(gpu: Gpu, device: str | None) -> None:
    image, mask = picture(64, 64)
    with plain_cpu():
        expected = LatentValidate()(image, mask, image * 0.5, seed=1)
    verdict = LatentValidate(device=device)(MetaTensor(image).to("cuda"), mask, image * 0.5, seed=1)
    assert verdict.score == pytest.approx(expected.score, abs=1e-3) and verdict.predicted.device == GPU


def test_screened_retries_with_a_guard_run_on_a_gpu(gpu: Gpu, random_inpainter: str) -> None:
    samples = [dict(zip(("image", "label"), picture(seed=seed), strict=True)) for seed in range(3)]
    bank = LesionBank.of([{key: value.to("cuda") for key, value in sample.items()} for sample in samples])
    image, mask = (MetaTensor(part).to("cuda") for part in picture())
    inpaint = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=2)
    common: dict[str, Any] = {"label_key": "label", "inpaint": inpaint, "refine_label": True, "validator": lambda x: x[:, :1] * 0 + 1}
    screen = ScreenNetwork(ScreenConfig())
    for least in (0.0, 1.0):
        validated = LatentValidated(
            "image", screen=screen, min_screen_dice=least, screen_after=0.5, novelty=bank, on_reject="retry", on_exhausted="flag",
            max_tries=2, min_dice=1.0, dynamic=True, **common,
        )  # fmt: skip
        result = validated({"image": image, "mask": mask, "label": mask, "prompt": "a cyst"})
        assert result["image"].device == result["label"].device == GPU
    accepting = LatentValidated("image", min_dice=0.0, max_false_positive=9.0, min_change=0.0, **common)
    refined = accepting({"image": image, "mask": mask, "label": mask.cpu(), "prompt": "a cyst"})
    assert refined["image_diffaug"]["accepted"] and refined["label"].device == CPU


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_batch_is_repainted_where_it_is(gpu: Gpu, random_inpainter: str, device: str | None) -> None:
    items = []
    for seed in range(3):
        image, mask = (MetaTensor(part, affine=torch.eye(4)) for part in picture(seed=seed))
        items.append({"image": image, "mask": mask, "label": mask, "prompt": "a cyst"})
    transform = DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=1, device=device, prob=0.7)
    with plain_cpu():
        expected = BatchLocalInpaint(transform, seed=1)(list_data_collate(items))
    batch = {key: value.to("cuda") if isinstance(value, Tensor) else value for key, value in list_data_collate(items).items()}
    result = BatchLocalInpaint(transform, seed=1)(batch)
    assert result["image"].device == result["label"].device == GPU
    torch.testing.assert_close(on_cpu(result["image"]), on_cpu(expected["image"]), **CLOSE)
    seen, label = PrepareBatchInpaint(BatchLocalInpaint(transform, seed=1))(list_data_collate(items), "cuda", True)
    assert seen.device == label.device == GPU


def test_transforms_without_a_model_keep_the_device(gpu: Gpu) -> None:
    image, mask = picture()
    there = MetaTensor(image).to("cuda")
    results = [EdgeMap(method)(there, mask) for method in ("canny", "scharr")]
    assert all(torch.equal(on_cpu(a), on_cpu(EdgeMap(m)(image, mask))) for a, m in zip(results, ("canny", "scharr"), strict=True))
    results += [SoftMask()(mask.to("cuda")), *RandPatchMerge()(there, image), *RandPatchMerge()(image.to("cuda"), there)]
    place = PlaceMaskd("image", label_key="label", region_key="region")
    results.append(place({"image": there, "label": mask * 0, "region": torch.ones_like(mask).to("cuda")})["mask"])
    results.append(PlaceMaskd("image", label_key="label")({"image": there, "label": mask * 0})["mask"])
    assert [result.device for result in results] == [GPU] * len(results)


# graphs, memory, timing


def test_a_recorded_call_waits_for_nothing_and_records_on_its_own_gpu(gpu: Gpu, random_inpainter: str) -> None:
    for where in (GPU, OTHER):
        model = loaded(random_inpainter, where)
        given = torch.zeros(2, 9, 16, 16, device=where), torch.tensor(5, device=where), model.encode_text(["a", "b"])
        with torch.no_grad(), torch.autocast("cuda"):
            assert torch.equal(GraphedDenoiser(model.denoise)(*given).cpu(), model.denoise(*given).cpu())
    assert [graph["device"] for graph in gpu.graphs] == [0, 1]
    assert all(graph["mode"] == "thread_local" and not graph["autocast"] for graph in gpu.graphs)


def test_a_call_that_reads_a_value_is_not_recorded(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    graphed = GraphedDenoiser(lambda latents, timestep, context: latents * float(timestep))
    given = torch.ones(2, 4, 8, 8, device=GPU), torch.tensor(3.0, device=GPU), torch.ones(2, 1, 1, device=GPU)
    assert float(graphed(*given).mean()) == 3.0
    assert "not permitted when stream is capturing" in caplog.text


def test_the_free_memory_sets_the_batch_sizes(gpu: Gpu, random_inpainter: str) -> None:
    model = loaded(random_inpainter, GPU)
    assert batch_sizes(model, 64, True, None) == (64, 8) and batch_sizes(model, 64, True, 3) == (3, 3)
    wide, narrow = batch_sizes(model, 8192, True, None)
    assert 1 <= wide < 64 and narrow == 1


def test_a_gpu_is_timed_by_its_own_events(gpu: Gpu) -> None:
    stopwatch(lambda: None, OTHER)
    assert gpu.events == [1, 1]


def test_the_arms_of_the_benchmark_agree_on_a_gpu(gpu: Gpu, random_inpainter: str) -> None:
    model = benchmark_models.in_precision(loaded(random_inpainter, GPU), torch.bfloat16)
    gates = gates_of(model, make_volume(64, 2), EditSettings(steps=1), "abc")
    assert all(gate.passed for gate in gates.values()), gates


def test_medsams_script_is_the_rival_on_a_gpu(gpu: Gpu) -> None:
    medsam = registry.shared_model(ModelSpec("medsam"), GPU, load_medsam)
    volume, box = make_volume(64, 1), torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    masks, _ = official_masks(medsam.sam, volume.slices, box, box_as_mask=True)
    assert masks.device == GPU and torch.equal(masks, medsam.decode(medsam.encode(volume.slices), box, (64, 64))[0])


# training


def lesions() -> list[Any]:
    from monai_diffaug.finetune.labelled_slices import LabelledSlice

    made = []
    for seed in range(1):
        image, mask = picture(64, 64, seed=seed)
        outline = mask[0].numpy() > 0
        made.append(LabelledSlice(image * 2 - 1, outline, outline, "benign mass", "ultrasound", "breast", "", f"slice {seed}"))
    return made


@pytest.mark.parametrize("recipe", ["inpaint", "controlnet", "semantic-controller", "medsam"])
def test_a_recipe_trains_draws_and_writes_on_a_gpu(gpu: Gpu, random_inpainter: str, tmp_path: Any, monkeypatch: Any, recipe: str) -> None:
    from monai_diffaug.finetune import controlnet, inpaint, loop, medsam, semantic_controller
    from monai_diffaug.finetune.settings import FineTuneSettings

    for module in (inpaint, semantic_controller):
        ring = module.EncodedRing
        monkeypatch.setattr(module, "EncodedRing", lambda sampler, encode, ring=ring: ring(sampler, encode, first=4, renewal=0.5))
    monkeypatch.setitem(DiffusionLocalInpaint.__init__.__kwdefaults__, "num_inference_steps", 1)  # of the pictures
    made: dict[str, Any] = {
        "inpaint": inpaint.InpaintRecipe,
        "controlnet": controlnet.ControlNetRecipe,
        "semantic-controller": semantic_controller.SemanticControllerRecipe,
        "medsam": medsam.MedSAMRecipe,
    }
    source = "tiny" if recipe == "medsam" else random_inpainter
    trains = recipe == "inpaint" or None
    settings = FineTuneSettings(model=source, minutes=None, steps=1, batch_size=1, pictures=0, device="cuda", decoder=trains)
    trainee = made[recipe](settings, lesions())
    if recipe != "inpaint":  # which draws as the others do
        monkeypatch.setattr(trainee, "draw", lambda file: None)
    assert loop.fine_tune(trainee, settings, tmp_path) == 1
    assert all(parameter.device == GPU for module in trainee.modules.values() for parameter in module.parameters())
