from __future__ import annotations

import pytest
import torch

from monai_diffaug.training.embedded.train_inpaint import LatentBank, build_scheduler, train, velocity_loss
from monai_diffaug.training.embedded.train_vae import build_vae


def make_bank(folder, n: int = 12) -> None:
    folder.mkdir(exist_ok=True)
    torch.save(
        {
            "latents": torch.randn(n, 4, 16, 16).half(),
            "masked": torch.randn(n, 4, 16, 16).half(),
            "mask": torch.ones(n, 1, 16, 16).half(),
            "captions": ["ultrasound of breast, benign mass"] * n,
        },
        folder / "train-000.pt",
    )


def test_the_scheduler_ends_in_pure_noise() -> None:
    assert build_scheduler().alphas_cumprod[-1].item() == pytest.approx(0.0, abs=1e-6)


def test_errors_under_the_mask_weigh_twice() -> None:
    predicted, target = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    inside, outside = predicted.clone(), predicted.clone()
    inside[..., :2], outside[..., 2:] = 1.0, 1.0
    alpha = torch.tensor([0.5])
    assert velocity_loss(inside, target, mask, alpha) == pytest.approx(2 * velocity_loss(outside, target, mask, alpha).item())


def test_a_bank_without_chunks_says_which_command_makes_them(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="latent_bank"):
        LatentBank(tmp_path)


def test_training_writes_a_folder_that_model_takes(tmp_path) -> None:
    from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

    make_bank(tmp_path / "bank")
    build_vae().save_pretrained(tmp_path / "vae")
    train(tmp_path / "bank", tmp_path / "vae", tmp_path / "out", minutes=0.03, batch_size=2)
    edit = DiffusionLocalInpaint(str(tmp_path / "out/inpainter"), num_inference_steps=1).apply(
        torch.rand(1, 64, 64), torch.ones(1, 64, 64), "a mass", seed=0
    )
    assert edit.record["applied"] is True
