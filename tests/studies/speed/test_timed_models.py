"""The models of the measurements: sizes, precision, and which of them are timed."""

from __future__ import annotations

import pytest
import torch

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.studies.speed import timed_models as models
from monai_diffaug.studies.speed.timed_edits import Amount

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)


def test_the_medium_unet_has_25_million_weights_and_the_same_each_time() -> None:
    unet, again = models.medium(CPU).unet, models.medium(CPU).unet
    assert 24e6 < sum(weight.numel() for weight in unet.parameters()) < 26e6
    assert torch.equal(unet.conv_in.weight, again.conv_in.weight)


def test_another_precision_and_another_scheduler_do_not_change_the_model(small: Inpainter) -> None:
    from diffusers import UniPCMultistepScheduler

    half = models.in_precision(small, torch.bfloat16)
    assert half.dtype == half.vae_dtype == torch.bfloat16 and small.dtype == torch.float32
    assert half.encode_text(["a"]).dtype == torch.bfloat16 and small.encode_text(["a"]).dtype == torch.float32
    other = models.with_scheduler(small, UniPCMultistepScheduler)
    assert other.unet is small.unet and type(other.scheduler) is not type(small.scheduler)


def test_the_tiny_vae_has_the_factor_and_channels_of_the_models_vae(small: Inpainter) -> None:
    other = models.with_tiny_vae(small)
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        latents = other.encode(images)
        assert latents.shape == small.encode(images).shape and other.decode(latents).shape == images.shape
    assert other.factor == small.factor and other.unet is small.unet


def test_the_instant_model_has_the_shapes_of_the_model_without_its_forwards(small: Inpainter) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a network was called")

    fast = models.instant(small)
    hooks = [module.register_forward_pre_hook(refuse) for module in (small.unet, small.vae.encoder, small.vae.decoder)]
    try:
        latents = fast.encode(torch.zeros(2, 3, 32, 48))
        prediction = fast.denoiser()(torch.zeros(2, 9, 8, 12), torch.tensor(1), fast.encode_text(["", ""]))
        images = fast.decode(latents)
    finally:
        for hook in hooks:
            hook.remove()
    assert latents.shape == prediction.shape == (2, 4, 8, 12) and images.shape == (2, 3, 32, 48)


def test_larger_models_are_timed_if_the_amount_has_them_and_the_largest_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("embedded", "medium", "stable_diffusion"):
        monkeypatch.setattr(models, name, lambda device, name=name: name)
    monkeypatch.setattr(models, "in_precision", lambda model, dtype: f"{model} in {dtype}")
    amount, gpu = Amount(volumes=((64, 16), (128, 8))), torch.device("cuda")
    small = [("embedded", "embedded", 64, None), ("embedded", "embedded", 128, None)]
    middle = [("25 M UNet", "medium", 64, None)]
    large = [("Stable Diffusion 1.5 size", "stable_diffusion in torch.bfloat16", 512, "stable_diffusion")]
    assert list(models.timed_models(CPU, Amount(volumes=amount.volumes, larger_models=False))) == small
    assert list(models.timed_models(CPU, amount)) == small + middle
    assert list(models.timed_models(gpu, amount)) == small + middle + large


@pytest.mark.slow
def test_the_largest_model_has_the_size_of_stable_diffusion() -> None:
    model = models.stable_diffusion(torch.device("meta"))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.unet, model.vae, model.text_encoder)]
    assert 859 < sizes[0] < 860 and 83 < sizes[1] < 84 and 80 < sizes[2] < 130
    assert model.size_px == 512 and model.factor == 8 and model.takes_mask
