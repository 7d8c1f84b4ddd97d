from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffaug.models.inpainter import Inpainter, load_inpainter
from monai_diffaug.models.latent_screen import ScreenConfig, ScreenNetwork, load_latent_screen, vae_fingerprint
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.crop_sampler import CropSampler
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.diffusion_loss import EncodedCrops
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes import latent_screen_recipe
from monai_diffaug.training.recipes.latent_screen_recipe import LatentScreenRecipe, repaint, screen_loss, verdict, with_findings
from monai_diffaug.training.run_settings import FineTuneSettings

SETTINGS = FineTuneSettings(model="fresh", minutes=None, steps=3, batch_size=2, pictures=1)


class Corner:
    """A validator that finds the upper left quarter, and counts its pictures."""

    size_px = 32

    def __init__(self) -> None:
        self.pictures = 0

    def predict(self, images: Tensor, generators: Any) -> Tensor:
        self.pictures += len(images)
        assert images.shape[-2:] == (32, 32) and float(images.abs().max()) <= 1 and len(generators) == len(images)
        prediction = torch.zeros(len(images), 1, 32, 32)
        prediction[..., :16, :16] = 1
        return prediction


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


@pytest.fixture(autouse=True)
def few_judged(monkeypatch):
    monkeypatch.setattr(latent_screen_recipe, "JUDGED_FIRST", 8)


@pytest.fixture
def painter(random_inpainter) -> Inpainter:
    return load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))


def made_up_crops(n: int = 4) -> EncodedCrops:
    latents, masked = torch.randn(2, n, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(n, 1, 16, 16)
    mask[..., 4:10, 4:10] = 1
    return EncodedCrops(latents, mask, masked)


def test_fresh_training_writes_a_screen_of_the_inpainters_vae(tmp_path, slices, random_inpainter, painter):
    settings = replace(SETTINGS, inpainter=random_inpainter)
    recipe = LatentScreenRecipe(settings, slices)
    before = {name: value.clone() for name, value in recipe.network.state_dict().items()}
    fine_tune(recipe, settings, tmp_path)
    screen = load_latent_screen(ModelSpec("latent_screen", str(tmp_path)))
    screen.check_vae(painter.vae)
    assert screen.fingerprint == vae_fingerprint(painter.vae)
    assert any(not torch.allclose(value, before[name], atol=1e-4) for name, value in screen.network.state_dict().items())
    assert screen.predict(torch.randn(1, 4, 16, 16)).shape == (1, 1, 16, 16)
    assert (tmp_path / "training/samples/step_000003.png").is_file()


def test_fresh_weights_for_the_embedded_inpainter_have_the_names_and_shapes_of_the_embedded_screen(slices):
    fresh = LatentScreenRecipe(SETTINGS, slices).network.state_dict()
    shipped = load_latent_screen(ModelSpec("latent_screen")).network.state_dict()
    assert {name: value.shape for name, value in fresh.items()} == {name: value.shape for name, value in shipped.items()}


def test_the_embedded_screen_is_trained_further_if_it_is_for_the_inpainters_vae(slices, random_inpainter):
    recipe = LatentScreenRecipe(replace(SETTINGS, model="tiny"), slices)
    shipped = load_latent_screen(ModelSpec("latent_screen")).network.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in recipe.network.state_dict().items())
    assert all(p.requires_grad for p in recipe.network.parameters())
    with pytest.raises(ValueError, match="was trained on the latents of another VAE"):
        LatentScreenRecipe(replace(SETTINGS, model="tiny", inpainter=random_inpainter), slices)


def test_real_masks_are_learned_first_and_verdicts_after_them(slices, random_inpainter, monkeypatch):
    recipe = LatentScreenRecipe(replace(SETTINGS, inpainter=random_inpainter), slices)
    recipe.validator = judge = Corner()
    recipe.reseed(0)
    targets = []
    monkeypatch.setattr(latent_screen_recipe, "screen_loss", lambda logits, target: targets.append(target) or logits.sum())
    recipe.loss(0.19)
    assert judge.pictures == 0
    recipe.loss(0.21)
    assert judge.pictures == 8
    corner = torch.zeros(2, 1, 16, 16)
    corner[..., :8, :8] = 1
    assert torch.equal(targets[1], corner) and not torch.equal(targets[0], corner)


def test_real_targets_are_the_masks_of_lesions_and_empty_on_normal_tissue(slices, random_inpainter):
    recipe = LatentScreenRecipe(replace(SETTINGS, inpainter=random_inpainter), slices)
    recipe.reseed(0)
    batch = recipe.crops.draw_batch(20)
    latents, target = recipe._real(batch)
    assert latents.shape == (20, 4, 16, 16) and torch.allclose(latents[0], recipe.inpainter.encode(batch.images)[0], atol=1e-5)
    assert [bool(row.any()) for row in target] == [crop.has_lesion for crop in batch.crops]


def test_normal_tissue_is_repainted_with_a_finding_of_the_same_anatomy(slices):
    chest = [replace(s, modality="x-ray", anatomy="chest", dataset="chest") for s in slices if s.is_normal]
    sampler = CropSampler([*slices, *chest], 32, seed=0)
    batch = sampler.draw_batch(30)
    changed = with_findings(sampler, batch)
    for crop, text, new in zip(batch.crops, batch.captions, changed, strict=True):
        if crop.has_lesion or crop.origin.anatomy == "chest":
            assert new == text
        else:
            assert "normal tissue" in text and "benign mass" in new


def test_repainting_changes_the_inside_of_the_mask_alone_and_long_runs_have_a_halfway(painter):
    crops, captions = made_up_crops(), ["ultrasound of breast, benign mass"] * 4
    outside = (crops.mask == 0).expand(-1, 4, -1, -1)
    for steps in (1, 4):
        latents, halfway = repaint(painter, crops, captions, steps, 2.0, torch.Generator().manual_seed(1))
        assert torch.equal(latents[outside], crops.latents[outside]) and not torch.equal(latents, crops.latents)
        assert (halfway is None) is (steps == 1)
    assert torch.equal(halfway[outside], crops.latents[outside]) and not torch.equal(halfway, latents)


def test_the_target_is_the_validators_verdict_at_latent_size(painter):
    target = verdict(painter, Corner(), torch.randn(2, 4, 16, 16), seed=0)
    corner = torch.zeros(2, 1, 16, 16)
    corner[..., :8, :8] = 1
    assert torch.equal(target, corner)


def test_the_loss_is_small_only_for_the_right_answer_and_a_few_steps_lower_it():
    target = torch.zeros(2, 1, 16, 16)
    target[..., 4:10, 4:10] = 1
    right, empty = (target * 2 - 1) * 8, torch.full_like(target, -8.0)
    assert float(screen_loss(right, target)) < 0.01 < 1 < float(screen_loss(empty, target))
    assert float(screen_loss(empty, target * 0)) < 0.01
    torch.manual_seed(0)
    network = ScreenNetwork(ScreenConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,)))
    latents = torch.randn(2, 4, 16, 16) * 0.1 + F.interpolate(target, 16) * 2
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    losses = []
    for _ in range(15):
        loss = screen_loss(network(latents), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
