from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec, shared_model
from monai_diffaug.models.semantic_controller import build_semantic_model
from monai_diffaug.training import semantic_loss as losses
from monai_diffaug.training.semantic_loss import SemanticCrops, denoising_step, distillation_loss, encode_semantic_crops, semantic_loss

CPU = torch.device("cpu")
GRID, WIDTH = 16, 128


@pytest.fixture
def inpainter(random_inpainter):
    return shared_model(ModelSpec("inpainter", random_inpainter), CPU, load_inpainter)


@pytest.fixture
def model(inpainter):
    torch.manual_seed(0)
    return build_semantic_model(inpainter)


def made_up_crops(n: int = 2) -> SemanticCrops:
    patches = GRID * GRID + 1
    return SemanticCrops(
        latents=torch.randn(n, 4, 16, 16),
        mask=torch.ones(n, 1, 16, 16),
        masked=torch.randn(n, 4, 16, 16),
        visible=torch.randn(n, patches, WIDTH),
        whole=torch.randn(n, patches, WIDTH),
        hidden=torch.ones(n, patches - 1, 1),
        captions=["a mass"] * n,
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_distillation_counts_hidden_patches_and_the_global_feature():
    whole = torch.zeros(1, 5, 2)
    predicted, pooled, hidden = torch.ones(1, 4, 2), torch.zeros(1, 2), torch.tensor([1.0, 1.0, 0.0, 0.0])[None, :, None]
    assert distillation_loss(predicted, pooled, whole, hidden).item() == pytest.approx(2 / 3)
    assert distillation_loss(predicted, pooled + 2, whole, hidden).item() == pytest.approx(2 / 3 + 4)
    assert distillation_loss(predicted, pooled, whole, torch.zeros_like(hidden)).item() == 0


def test_the_diffusion_loss_trains_adapter_and_controller_and_a_dropped_condition_neither(inpainter, model):
    for processor in model.adapter.processors:
        torch.nn.init.normal_(processor.to_v_ip[0].weight)
    crops = made_up_crops()

    def gradients(is_kept: list[bool]) -> dict[str, float]:
        model.parts.zero_grad(set_to_none=True)
        torch.autograd.backward(denoising_step(inpainter, model, crops, torch.tensor(is_kept), generator()))
        return {n: 0.0 if p.grad is None else float(p.grad.abs().sum()) for n, p in model.parts.named_parameters()}

    of_kept = gradients([True, True])
    assert of_kept["controller.to_patches.weight"] > 0 and of_kept["adapter.processors.0.to_v_ip.0.weight"] > 0
    assert sum(gradients([False, False]).values()) == 0
    assert all(p.grad is None for p in inpainter.unet.parameters())


def test_the_second_phase_goes_on_distilling_where_the_condition_is_dropped(inpainter, model, monkeypatch):
    monkeypatch.setattr(losses, "CONDITION_DROPOUT", 1.0)
    torch.autograd.backward(semantic_loss(inpainter, model, made_up_crops(), distils=False, generator=generator()))
    assert float(model.parts["controller"].get_parameter("to_patches.weight").grad.abs().sum()) > 0
    assert all(p.grad is None or not p.grad.any() for p in model.adapter.parameters())


def test_a_tenth_of_the_conditions_is_dropped(inpainter, model, monkeypatch):
    kept: list[Tensor] = []
    monkeypatch.setattr(
        losses, "denoising_step", lambda inpainter, model, crops, is_kept, generator: kept.append(is_kept) or torch.zeros(())
    )
    crops, draws = made_up_crops(40), generator()
    for _ in range(5):
        semantic_loss(inpainter, model, crops, distils=False, generator=draws)
    assert float(torch.cat(kept).float().mean()) == pytest.approx(0.9, abs=0.06)


def test_crops_are_encoded_with_and_without_their_mask(inpainter, model):
    images, masks = torch.rand(2, 3, 64, 64) * 2 - 1, torch.zeros(2, 1, 64, 64)
    masks[..., 16:32, 16:32] = 1
    crops = encode_semantic_crops(inpainter, model, images, masks, ["a", "b"])
    assert crops.latents.shape == crops.masked.shape == (2, 4, 16, 16) and crops.mask.shape == (2, 1, 16, 16)
    assert crops.visible.shape == crops.whole.shape == (2, GRID * GRID + 1, WIDTH)
    patches, pooled = model.encoder(images * (1 - masks))
    assert torch.allclose(crops.visible, torch.cat([patches, pooled[:, None]], 1), atol=1e-5) and not torch.equal(
        crops.visible, crops.whole
    )
    assert torch.equal(crops.hidden.reshape(2, GRID, GRID) > 0, torch.nn.functional.max_pool2d(masks, 4)[:, 0] > 0)
