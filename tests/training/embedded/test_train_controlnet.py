from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from monai_diffaug.masks.edges import control_image
from monai_diffaug.models.controlnet import build_controlnet, load_controlnet
from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.embedded import control_bank
from monai_diffaug.training.embedded.control_bank import (
    ControlBank,
    ControlCrop,
    ControlCropSampler,
    augmented_control,
    build_control_chunk,
)
from monai_diffaug.training.embedded.train_controlnet import control_loss, embed_controlnet, noisy_steps, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(random_inpainter: str) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), CPU)


def made_crop(size: int = 64) -> ControlCrop:
    mask = torch.zeros(1, size, size)
    mask[:, 20:40, 24:44] = 1
    return ControlCrop(torch.rand(3, size, size) * 2 - 1, mask, mask, "ultrasound of breast, benign mass", "benign mass")


def write_bank(model: Inpainter, folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.save(build_control_chunk(model.vae, made_crop, 6, seed=0), folder / "train-000.pt")


def test_a_chunk_holds_latents_and_a_control_of_the_same_crop(model: Inpainter) -> None:
    torch.manual_seed(0)
    crop = made_crop()
    chunk = build_control_chunk(model.vae, lambda: crop, 3, seed=0)
    assert chunk["latents"].shape == chunk["masked"].shape == (3, 4, 16, 16) and chunk["mask"].shape == (3, 1, 16, 16)
    assert chunk["control"].shape == (3, 1, 64, 64) and chunk["control"].dtype == torch.uint8 and len(chunk["captions"]) == 3
    with torch.no_grad():
        assert torch.allclose(chunk["latents"][0].float(), model.encode(crop.image[None])[0], atol=1e-2)
    assert not torch.allclose(chunk["latents"], chunk["masked"])


def test_the_control_is_varied_but_always_shows_the_outline() -> None:
    rng, crop = np.random.RandomState(0), made_crop()
    controls = [augmented_control(rng, crop) for _ in range(20)]
    outline = control_image(torch.zeros(1, 1, 64, 64), crop.outline[None])[0] > 0
    assert len({float(c.sum()) for c in controls}) > 10
    near = [torch.nn.functional.max_pool2d(c[None], 3, 1, 1)[0][outline] for c in controls]
    assert min(float(values.mean()) for values in near) > 0.3
    assert all(c.shape == (1, 64, 64) and float(c.min()) >= 0 and float(c.max()) <= 1 for c in controls)


def test_only_the_controlnet_learns_and_its_first_loss_is_the_inpainters(model: Inpainter, tmp_path: Path) -> None:
    write_bank(model, tmp_path / "bank")
    network = build_controlnet(model.unet, model.factor).train().requires_grad_(True)
    batch = ControlBank(tmp_path / "bank").batch_with_control(4, 0.0)
    torch.manual_seed(0)
    steps, noise = torch.randint(0, 1000, (4,)), torch.randn_like(batch[0])
    first = control_loss(model, network, batch, steps, noise)
    first.backward()
    assert network.controlnet_mid_block.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.unet.parameters())
    blind = control_loss(model, network, (*batch[:3], torch.zeros_like(batch[3]), batch[4]), steps, noise)
    assert first.item() == pytest.approx(blind.item())


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("sampler", ["EulerDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_the_loss_does_not_depend_on_the_sampler_that_the_folder_names(model: Inpainter, tmp_path: Path, sampler: str, kind: str) -> None:
    write_bank(model, tmp_path / "bank")
    network = build_controlnet(model.unet, model.factor)
    batch = ControlBank(tmp_path / "bank").batch_with_control(4, 0.0)
    steps, noise = torch.tensor([0, 300, 700, 999]), torch.randn_like(batch[0])
    config = {**model.scheduler.config, "prediction_type": kind}
    ddim, other = (
        control_loss(replace(model, scheduler=getattr(diffusers, name).from_config(config)), network, batch, steps, noise).item()
        for name in ("DDIMScheduler", sampler)
    )
    assert ddim == other


def test_timesteps_lean_towards_noise_and_stay_in_range() -> None:
    torch.manual_seed(0)
    steps = noisy_steps(4000, 1000)
    assert int(steps.min()) >= 0 and int(steps.max()) == 999
    assert float(steps.float().mean()) == pytest.approx(750, abs=20)


def test_captions_are_dropped_as_often_as_asked(model: Inpainter, tmp_path: Path) -> None:
    write_bank(model, tmp_path / "bank")
    bank = ControlBank(tmp_path / "bank")
    torch.manual_seed(0)
    *_, control, texts = bank.batch_with_control(400, 0.3)
    assert np.mean([text == "" for text in texts]) == pytest.approx(0.3, abs=0.08)
    assert control.min() >= 0 and control.max() == 1


def test_training_resumes_and_writes_a_folder_that_controlnet_takes(
    random_inpainter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stub:
        def __init__(self, split: str, seed: int, size_px: int) -> None:
            self.draw_control_crop = lambda: made_crop(size_px)

    monkeypatch.setattr(control_bank, "ControlCropSampler", Stub)
    train(random_inpainter, tmp_path, 0.03, chunks=1, chunk_size=4, batch_size=2)
    written = (tmp_path / "bank/train-000.pt").stat().st_mtime_ns
    learnt = load_controlnet(ModelSpec("controlnet", str(tmp_path)), CPU)
    assert learnt.controlnet_mid_block.weight.abs().sum() > 0
    train(random_inpainter, tmp_path, 0.03, chunks=1, chunk_size=4, batch_size=2)  # the budget is spent: nothing more is learnt
    again = load_controlnet(ModelSpec("controlnet", str(tmp_path)), CPU)
    assert all(torch.equal(a, b) for a, b in zip(learnt.parameters(), again.parameters(), strict=True))
    assert (tmp_path / "bank/train-000.pt").stat().st_mtime_ns == written
    size = embed_controlnet(tmp_path / "controlnet", tmp_path / "tiny")
    assert size < 0.6 * sum(f.stat().st_size for f in (tmp_path / "controlnet").iterdir())
    assert (tmp_path / "tiny/config.json").is_file()


def test_real_crops_are_hidden_whole_as_often_as_asked(real_data: Path) -> None:
    sampler = ControlCropSampler("validation", 0, ("fundus_disc_cup",), whole_share=0.5, size_px=32)
    crops = [sampler.draw_control_crop() for _ in range(40)]
    share = np.mean([bool((c.mask == 1).all()) for c in crops])
    assert 0.25 < share < 0.75
    assert all(c.image.shape == (3, 32, 32) and c.image.abs().max() <= 1 for c in crops)
    local = [c for c in crops if not bool((c.mask == 1).all())]
    assert all(bool((c.mask >= c.outline).all()) for c in local) and any(c.outline.any() for c in local)
