from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec, shared_model
from monai_diffaug.models.semantic_controller import build_semantic_model, load_semantic_controller
from monai_diffaug.training.embedded import train_semantic_controller as semantic_controller
from monai_diffaug.training.embedded.train_inpaint import build_scheduler
from monai_diffaug.training.embedded.train_semantic_controller import (
    Batch,
    denoising_step,
    diffusion_loss,
    distillation_loss,
    train,
    training_loss,
)

CPU = torch.device("cpu")
GRID, WIDTH = 16, 128


def made_up_bank(folder: Path, n: int = 6) -> None:
    folder.mkdir(parents=True)
    patches = GRID * GRID + 1
    torch.save(
        {
            "latents": torch.randn(n, 4, 16, 16).half(),
            "masked": torch.randn(n, 4, 16, 16).half(),
            "mask": torch.ones(n, 1, 16, 16).half(),
            "seen": torch.randn(n, patches, WIDTH).half(),
            "whole": torch.randn(n, patches, WIDTH).half(),
            "hidden": torch.ones(n, patches - 1, 1).half(),
            "captions": ["ultrasound of breast, benign mass"] * n,
        },
        folder / "train-000.pt",
    )


def made_up_batch() -> Batch:
    patches = GRID * GRID + 1
    return Batch(
        *(torch.randn(2, 4, 16, 16) for _ in range(2)),
        torch.ones(2, 1, 16, 16),
        torch.randn(2, patches, WIDTH),
        torch.randn(2, patches, WIDTH),
        torch.ones(2, patches - 1, 1),
        ["a mass", "a cyst"],
    )


def test_the_distillation_counts_hidden_patches_and_the_global_feature() -> None:
    whole = torch.zeros(1, 5, 2)
    predicted, pooled, hidden = torch.ones(1, 4, 2), torch.zeros(1, 2), torch.tensor([1.0, 1.0, 0.0, 0.0])[None, :, None]
    assert distillation_loss(predicted, pooled, whole, hidden).item() == pytest.approx(2 / 3)
    assert distillation_loss(predicted, pooled + 2, whole, hidden).item() == pytest.approx(2 / 3 + 4)
    assert distillation_loss(predicted, pooled, whole, torch.zeros_like(hidden)).item() == 0


def test_a_perfect_prediction_has_no_loss_for_velocity_and_epsilon_and_x0_is_refused() -> None:
    from diffusers import DDIMScheduler

    latents, noise, steps, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.ones(2, 1, 8, 8)
    velocity = build_scheduler()
    assert diffusion_loss(velocity, velocity.get_velocity(latents, noise, steps), latents, noise, steps, mask) == 0
    assert diffusion_loss(DDIMScheduler(), noise, latents, noise, steps, mask) == 0
    assert diffusion_loss(DDIMScheduler(), latents, latents, noise, steps, mask) > 0
    with pytest.raises(ValueError, match="prediction_type"):
        diffusion_loss(DDIMScheduler(prediction_type="sample"), noise, latents, noise, steps, mask)


def test_the_diffusion_loss_trains_adapter_and_controller_and_a_dropped_condition_neither(random_inpainter) -> None:
    inpainter = shared_model(ModelSpec("inpainter", random_inpainter), CPU, load_inpainter)
    torch.manual_seed(0)
    model = build_semantic_model(inpainter)
    for processor in model.adapter.processors:
        torch.nn.init.normal_(processor.to_v_ip[0].weight)
    batch = made_up_batch()

    def moved(kept: list[bool]) -> dict[str, float]:
        model.parts.zero_grad(set_to_none=True)
        torch.autograd.backward(denoising_step(inpainter, model, batch, torch.tensor(kept)))
        return {n: 0.0 if p.grad is None else float(p.grad.abs().sum()) for n, p in model.parts.named_parameters()}

    gradients = moved([True, True])
    assert gradients["controller.to_patches.weight"] > 0 and gradients["adapter.processors.0.to_v_ip.0.weight"] > 0
    assert sum(moved([False, False]).values()) == 0
    assert all(p.grad is None for p in inpainter.unet.parameters())


@pytest.mark.parametrize("sampler", ["EulerDiscreteScheduler", "PNDMScheduler"])
def test_the_diffusion_loss_does_not_depend_on_the_sampler_that_the_folder_names(random_inpainter, sampler) -> None:
    inpainter = shared_model(ModelSpec("inpainter", random_inpainter), CPU, load_inpainter)
    model, batch, kept = build_semantic_model(inpainter), made_up_batch(), torch.tensor([True, True])
    other = replace(inpainter, scheduler=getattr(diffusers, sampler).from_config(inpainter.scheduler.config))
    losses = [denoising_step(i, model, batch, kept, torch.Generator().manual_seed(0)).item() for i in (inpainter, other)]
    assert losses[0] == losses[1]


def test_the_second_phase_goes_on_distilling_where_the_condition_is_dropped(random_inpainter, monkeypatch) -> None:
    monkeypatch.setattr(semantic_controller, "CONDITION_DROPOUT", 1.0)
    inpainter = shared_model(ModelSpec("inpainter", random_inpainter), CPU, load_inpainter)
    model = build_semantic_model(inpainter)
    batch = made_up_batch()
    torch.autograd.backward(training_loss(inpainter, model, batch, distils=False))
    assert float(model.parts["controller"].get_parameter("to_patches.weight").grad.abs().sum()) > 0
    assert all(p.grad is None or not p.grad.any() for p in model.adapter.parameters())


def test_training_writes_a_folder_that_loads_and_a_second_run_resumes(random_inpainter, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(semantic_controller, "CHUNK_SIZE", 6)
    made_up_bank(tmp_path / "bank")
    folder = train(random_inpainter, tmp_path, minutes=0.03, batch_size=2, crops=6)
    model = load_semantic_controller(ModelSpec("semantic_controller", str(folder)), CPU)
    trained = model.parts.state_dict()
    assert float(trained["adapter.processors.0.to_v_ip.0.weight"].abs().max()) > 0
    train(random_inpainter, tmp_path, minutes=0.03, batch_size=2, crops=6)  # its minutes are spent: nothing moves
    again = load_semantic_controller(ModelSpec("semantic_controller", str(folder)), CPU).parts.state_dict()
    assert all(torch.equal(again[name], value) for name, value in trained.items())


def test_the_bank_holds_what_a_step_needs(random_inpainter, tmp_path: Path, real_data) -> None:
    inpainter = shared_model(ModelSpec("inpainter", random_inpainter), CPU, load_inpainter)
    bank = semantic_controller.SemanticBank(tmp_path, inpainter, build_semantic_model(inpainter), crops=2)
    batch = bank.batch(3, torch.zeros(1))
    assert batch.latents.shape == batch.masked.shape == (3, 4, 32, 32) and batch.mask.shape == (3, 1, 32, 32)
    assert batch.seen.shape == batch.whole.shape == (3, GRID * GRID + 1, WIDTH)
    assert batch.hidden.shape == (3, GRID * GRID, 1) and 0 < batch.hidden.mean() < 1
    assert not torch.equal(batch.seen, batch.whole) and len(batch.captions) == 3
