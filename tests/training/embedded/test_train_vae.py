from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffaug.training.embedded import train_vae as recipe
from monai_diffaug.training.embedded.train_vae import TRAIN_PX, CropSampler, build_vae, reconstruction_loss


def test_crops_are_in_the_model_range_and_repeat_with_the_seed(real_data) -> None:
    first, again = CropSampler("train", 7), CropSampler("train", 7)
    crops = first.draw(4)
    assert crops.shape == (4, 3, TRAIN_PX, TRAIN_PX)
    assert crops.min() >= -1 and crops.max() <= 1
    assert torch.equal(crops, again.draw(4))


def test_a_data_set_left_out_is_never_drawn(monkeypatch) -> None:
    loaded: list[str] = []

    def remember(name: str, split: str) -> list[object]:
        loaded.append(name)
        return [type("Sample", (), {"image": np.zeros((8, 8, 3), np.uint8)})()]

    monkeypatch.setattr(recipe, "load_samples", remember)
    CropSampler("train", 0, ["breast_ultrasound", "spine_mri"])
    assert "breast_ultrasound" not in loaded and "spine_mri" not in loaded
    assert len(loaded) == 10


def test_the_loss_counts_lost_edges() -> None:
    target = (torch.arange(8) % 2).float().expand(1, 3, 8, 8)
    flat = torch.full_like(target, 0.5)
    shifted = target * 0.5 + 0.25
    assert reconstruction_loss(target, target) == 0
    assert reconstruction_loss(shifted, target) < reconstruction_loss(flat, target)


def test_the_autoencoder_has_a_factor_of_four_and_keeps_channel_means() -> None:
    vae = build_vae()
    assert vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode().shape == (1, 4, 8, 8)
    norms = [m for m in vae.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert all(norm.num_channels // norm.num_groups > 1 for norm in norms)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_finished_run_is_a_folder_that_diffusers_loads(tmp_path, monkeypatch, frozen) -> None:
    monkeypatch.setattr(recipe, "load_samples", lambda name, split: [_grey()])
    recipe.train(tmp_path, minutes=0.01, batch_size=2)
    if frozen:
        before = recipe.AutoencoderKL.from_pretrained(tmp_path / "vae").encoder.state_dict()
        after = recipe.train(tmp_path, minutes=0.01, batch_size=2, freeze_encoder=True).encoder.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    loaded = recipe.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert loaded.config.scaling_factor > 0


def _grey() -> object:
    image = np.random.RandomState(0).randint(0, 255, (256, 256, 3)).astype(np.uint8)
    return type("Sample", (), {"image": image})()
