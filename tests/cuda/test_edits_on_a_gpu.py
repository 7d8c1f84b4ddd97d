"""Edits: where image, mask, label and model are, and all that steers them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug.edit.options import InpaintOptions, Noise, Region, Run, SoftEdge
from monai_diffaug.models.controlnet import ControlledDenoiser, build_controlnet
from monai_diffaug.studies.speed import timed_models as benchmark_models
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from tests.cuda.edits import CLOSE, CPU, GPU, edited, edited_on_cpu, loaded, on_cpu, picture
from tests.pretend_cuda import Gpu

SCHEDULERS = {
    "DDIMScheduler": 0.6,
    "DPMSolverMultistepScheduler": 1.0,
    "UniPCMultistepScheduler": 0.6,
    "EulerDiscreteScheduler": 1.0,
    "LCMScheduler": 0.6,
}  # with the strengths that they are run with


@pytest.mark.parametrize(
    ("where", "device"), [("cpu", "cuda"), ("cuda", None), ("cuda", "cuda:0"), ("cuda", "cpu"), ("cuda:1", "cuda:0"), ("numpy", "cuda")]
)
def test_an_edit_comes_back_where_its_image_was(gpu: Gpu, random_inpainter: str, where: str, device: str | None) -> None:
    image, mask = picture()
    source = image.numpy() if where == "numpy" else MetaTensor(image, affine=torch.eye(4)).to(where)
    result = edited(source, mask, random_inpainter, device=device)
    assert type(result) is type(source) and getattr(result, "device", CPU) == getattr(source, "device", CPU)
    assert torch.equal(on_cpu(result)[:, :2], image[:, :2])
    torch.testing.assert_close(on_cpu(result), edited_on_cpu(image, mask, random_inpainter), **CLOSE)


def test_label_mask_and_volume_may_be_on_different_devices(gpu: Gpu, random_inpainter: str) -> None:
    image, mask = picture(32, 40, 5)
    volume = MetaTensor((image * 2000 - 1000).to(torch.int16), affine=torch.diag(torch.tensor([-1.0, 1, 2, 1]))).to("cuda")
    inpaint = DiffusionLocalInpaint(random_inpainter, num_inference_steps=2, options=InpaintOptions(noise=Noise(rho=0.5)))
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
        (9, {"options": InpaintOptions(noise=Noise(source="inverted", scale=0.3)), "num_inference_steps": 1}),
        (4, {"options": InpaintOptions(noise=Noise(source="inverted")), "strength": 0.5}),
        (9, {"options": InpaintOptions(guidance_interval=(0.0, 0.5), soft_edge=SoftEdge(0.0))}),
        (9, {"options": InpaintOptions(soft_edge=SoftEdge(width_mm=1.5), region=Region(whole_slice=True)), "guidance_scale": 1.0}),
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
    options = InpaintOptions(run=Run(dtype=dtype), control=steering.get(name))
    result = edited(image.to("cuda"), mask, random_inpainter, options=options, num_inference_steps=1)
    assert result.device == GPU and result.dtype == torch.float32 and bool(torch.isfinite(result).all())


@pytest.mark.parametrize("name", ["controlnet", "semantic"])
def test_what_steers_gives_on_a_gpu_what_it_gives_on_the_cpu(gpu: Gpu, random_inpainter: str, steering: Any, name: str) -> None:
    image, mask = picture()
    expected = edited_on_cpu(image, mask, random_inpainter, options=InpaintOptions(control=steering[name]))
    torch.testing.assert_close(
        on_cpu(edited(image.to("cuda"), mask, random_inpainter, options=InpaintOptions(control=steering[name]))),
        expected,
        rtol=0,
        atol=1e-2,
    )


@pytest.mark.parametrize(("name", "dtype"), [("controlnet", torch.float32), ("semantic", torch.bfloat16)])
def test_what_steers_goes_where_a_live_inpainter_is(gpu: Gpu, random_inpainter: str, steering: Any, name: str, dtype: torch.dtype) -> None:
    live = benchmark_models.in_precision(loaded(random_inpainter, GPU), dtype)
    image, mask = picture()
    assert edited(image, mask, live, num_inference_steps=1, options=InpaintOptions(control=steering[name])).device == CPU


def test_a_live_pipeline_may_keep_vae_and_text_encoder_in_float32(gpu: Gpu, random_inpainter: str) -> None:
    model = loaded(random_inpainter, GPU)
    half = replace(benchmark_models.in_precision(model, torch.bfloat16), vae=model.vae, text_encoder=model.text_encoder)
    image, mask = picture()
    assert edited(image, mask, half).device == CPU
    network = build_controlnet(half.unet, half.factor).to(GPU, torch.float32)
    control = ControlledDenoiser(half, network, torch.zeros(1, 1, 64, 64))
    latents = torch.zeros(1, 9, 16, 16, device=GPU, dtype=torch.bfloat16)
    assert control(latents, torch.tensor(5, device=GPU), half.encode_text(["a"])).dtype == torch.bfloat16
