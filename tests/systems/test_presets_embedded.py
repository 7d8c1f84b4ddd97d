"""Each system in one line, on the embedded models: what a first user runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from monai_diffaug import presets
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec, shared_model, tiny_folder
from monai_diffaug.models.semantic_controller import SemanticDenoiser, load_semantic_controller

embedded = pytest.mark.skipif(
    not (tiny_folder("semantic_controller") / "config.json").is_file(), reason="no embedded semantic controller in this tree"
)
PRESETS: dict[str, Callable[..., Compose]] = {
    "mila_tmgdiff": presets.mila_tmgdiff,
    "diffaug": presets.diffaug,
    "emit_diff": presets.emit_diff,
}


def sample() -> dict[str, MetaTensor]:
    """A dark disc in textured tissue and its label, int16, 1.5 mm pixels."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    disc = (((rows - 60) ** 2 + (columns - 70) ** 2) < 20**2)[None]
    coarse = torch.rand(1, 1, 16, 16, generator=generator)
    tissue = torch.nn.functional.interpolate(coarse, (128, 128), mode="bicubic")[0] * 600 + 200
    affine = torch.diag(torch.tensor([1.5, 1.5, 1.0, 1.0]))
    image = MetaTensor((tissue - 250 * disc).to(torch.int16), affine=affine)
    return {"image": image, "label": MetaTensor(disc.to(torch.uint8), affine=affine)}


def check(preset: Compose) -> None:
    before = {key: value.clone() for key, value in sample().items()}
    data = sample()
    result = preset.set_random_state(0)(data)
    image, record = result["image"], result["image_diffaug"]
    assert all(torch.equal(data[key], before[key]) for key in before)
    assert isinstance(image, MetaTensor) and image.dtype == torch.int16 and torch.equal(image.affine, before["image"].affine)
    assert record["tries"] >= 1 and record["applied"] == bool((image != before["image"]).any())
    assert record["applied"] or record["reason"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_system_runs_on_the_embedded_models_in_one_line(name: str) -> None:
    check(PRESETS[name](modality="ultrasound", finding=["benign mass"], num_inference_steps=2, prob=1.0))


@embedded
def test_medsoft_diffusion_runs_on_the_embedded_models_in_one_line() -> None:
    check(presets.medsoft_diffusion(modality="ultrasound", finding=["benign mass"], num_inference_steps=2, prob=1.0))


@embedded
def test_the_embedded_semantic_controller_fits_the_embedded_inpainter_is_small_and_steers_it() -> None:
    folder = tiny_folder("semantic_controller")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5_000_000
    inpainter = shared_model(ModelSpec("inpainter"), "cpu", load_inpainter)
    model = load_semantic_controller(ModelSpec("semantic_controller"), torch.device("cpu"))
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hard = torch.zeros(1, 1, 128, 128)
    hard[..., 40:80, 40:80] = 1
    context = inpainter.encode_text(["ultrasound of breast, benign mass"])
    latents, timestep = torch.randn(1, 9, 32, 32, generator=torch.Generator().manual_seed(2)), torch.tensor(700)
    with torch.no_grad():
        steered = SemanticDenoiser(inpainter, model, images=images, hard=hard, context=context)(latents, timestep, context)
        other = SemanticDenoiser(inpainter, model, images=-images, hard=hard, context=context)(latents, timestep, context)
        plain = inpainter.denoise(latents, timestep, context)
    assert torch.isfinite(steered).all() and float((steered - plain).abs().mean()) > 1e-4
    assert not torch.allclose(steered, other, atol=1e-4)
