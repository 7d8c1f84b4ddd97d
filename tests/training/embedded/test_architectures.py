from __future__ import annotations

import json

import pytest
import torch

from monai_diffaug.models.registry import tiny_folder
from monai_diffaug.training.embedded.architectures import build_inpainter, build_scheduler, build_unet, build_vae


def shapes_of(part: str) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(tiny_folder("inpainter") / part / "diffusion_pytorch_model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(("part", "build"), [("vae", build_vae), ("unet", build_unet)])
def test_names_and_shapes_are_those_of_the_embedded_weights(part, build) -> None:
    assert {name: tuple(value.shape) for name, value in build().state_dict().items()} == shapes_of(part)


def test_the_scheduler_has_the_configuration_of_the_embedded_one_and_ends_in_pure_noise() -> None:
    shipped = json.loads((tiny_folder("inpainter") / "scheduler/scheduler_config.json").read_text())
    scheduler = build_scheduler()
    mine = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    assert mine == {key: value for key, value in shipped.items() if not key.startswith("_")}
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-6)


def test_an_inpainter_of_random_weights_denoises() -> None:
    model = build_inpainter(build_vae())
    with torch.no_grad():
        answer = model.denoise(torch.zeros(1, 9, 32, 32), torch.tensor([10]), model.encode_text(["breast ultrasound, benign mass"]))
    assert answer.shape == (1, 4, 32, 32) and model.takes_mask and model.size_px == 128 and bool(torch.isfinite(answer).all())
