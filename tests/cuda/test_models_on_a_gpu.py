"""Models that are moved, and the table that keeps them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from monai_diffaug.errors import WorkerDeviceError
from monai_diffaug.models import registry
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec, load_count
from monai_diffaug.models.semantic_controller import SemanticDenoiser, build_semantic_model, load_semantic_controller
from monai_diffaug.sampling.inversion import invert_latents
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from tests.cuda.edits import CPU, GPU, OTHER, loaded, picture
from tests.pretend_cuda import Gpu, pretended_gpus


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
