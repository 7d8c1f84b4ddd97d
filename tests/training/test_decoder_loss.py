from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training import decoder_loss as decoder
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.decoder_loss import decoder_loss, psnr_db, reconstruction_loss
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes.inpaint_recipe import InpaintRecipe
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError
from monai_diffaug.training.texture_loss import texture_loss

SETTINGS = FineTuneSettings(minutes=None, steps=2, batch_size=2, pictures=0)


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


@pytest.fixture(scope="module")
def teal(slices):
    """Colours of which no medical image has many."""
    return [replace(s, stored=torch.cat([-0.9 + 0 * s.image, s.image, 0.6 + 0.2 * s.image]), window=None) for s in slices]


@torch.no_grad()
def round_trip_db(model, images):
    return psnr_db(model.decode(model.encode(images)), images)


def test_the_loss_counts_lost_edges():
    target = (torch.arange(8) % 2).float().expand(1, 3, 8, 8)
    flat, weak = torch.full_like(target, 0.5), target * 0.5 + 0.25
    assert reconstruction_loss(target, target) == 0
    assert reconstruction_loss(weak, target) < reconstruction_loss(flat, target)


def test_a_texture_weight_adds_that_share_of_the_texture_loss():
    target = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(target, 0.5)
    added = reconstruction_loss(flat, target, 0.15) - reconstruction_loss(flat, target)
    torch.testing.assert_close(added, 0.15 * texture_loss(flat, target))
    assert torch.equal(reconstruction_loss(flat, target, 0.0), reconstruction_loss(flat, target))


def test_a_texture_weight_needs_a_decoder_that_is_trained_and_raises_its_loss(slices):
    with pytest.raises(TrainingInputError, match="leaves the decoder as it is; add --decoder"):
        InpaintRecipe(replace(SETTINGS, texture_weight=0.15), slices)
    losses = []
    for weight in (0.0, 0.15):
        recipe = InpaintRecipe(replace(SETTINGS, texture_weight=weight, decoder=True), slices)
        recipe.reseed(0)
        losses.append(float(recipe.loss().detach()))
    assert losses[1] > losses[0] + 0.01


def test_the_signal_to_noise_ratio_is_that_of_a_range_of_two():
    images = torch.zeros(1, 3, 8, 8)
    assert psnr_db(images + 0.02, images) == pytest.approx(40, abs=0.01) and psnr_db(images + 0.2, images) == pytest.approx(20, abs=0.01)


def trained_modules(recipe):
    return {name for name, module in recipe.modules.items() if all(p.requires_grad for p in module.parameters())}


def test_the_embedded_decoder_is_left_alone_where_it_knows_the_images_and_trained_where_it_does_not(slices, teal, caplog):
    assert trained_modules(InpaintRecipe(SETTINGS, slices)) == {"unet"}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        recipe = InpaintRecipe(SETTINGS, teal)
    assert trained_modules(recipe) == {"unet", "vae_decoder", "vae_post_quant_conv"}
    assert "dB only" in caplog.text and "--no-decoder" in caplog.text
    assert not any(p.requires_grad for p in recipe.model.vae.encoder.parameters())


def test_the_user_decides_and_low_rank_training_only_warns(teal, caplog):
    assert trained_modules(InpaintRecipe(replace(SETTINGS, decoder=False), teal)) == {"unet"}
    with caplog.at_level(logging.WARNING):
        recipe = InpaintRecipe(replace(SETTINGS, lora=True), teal)
    assert not recipe.trains_decoder and "--decoder trains its decoder too" in caplog.text
    assert InpaintRecipe(replace(SETTINGS, lora=True, decoder=True), teal).trains_decoder


@pytest.mark.slow
def test_a_trained_decoder_shows_the_images_better_and_the_encoder_is_written_as_it_was(random_inpainter, teal, tmp_path):
    recipe = InpaintRecipe(replace(SETTINGS, model=random_inpainter, steps=12, rate=5e-3), teal)
    recipe.reseed(0)
    images = recipe.ring.sampler.draw_batch(4).images
    before, encoder = round_trip_db(recipe.model, images), {k: v.clone() for k, v in recipe.model.vae.encoder.state_dict().items()}
    fine_tune(recipe, recipe.settings, tmp_path)
    written = load_inpainter(ModelSpec("inpainter", str(tmp_path)), torch.device("cpu"))
    assert round_trip_db(written, images) > before + 1
    assert all(torch.equal(value, encoder[name]) for name, value in written.vae.encoder.state_dict().items())


def test_the_window_of_the_latents_is_that_of_the_image(monkeypatch):
    """An autoencoder that decodes exactly has no loss, wherever the window lies."""

    class Exact:
        factor = 4

        def decode(self, latents):
            return torch.nn.functional.interpolate(latents[:, :3], scale_factor=4)

    latents = torch.rand(6, 4, 9, 9)
    images = Exact().decode(latents)
    generator = torch.Generator().manual_seed(0)
    seen = []
    monkeypatch.setattr(
        decoder, "reconstruction_loss", lambda out, target, weight: seen.append(target.clone()) or (out - target).abs().sum()
    )
    assert all(float(decoder_loss(Exact(), latents, images, generator)) == 0 for _ in range(8))
    assert seen[0].shape == (4, 3, 16, 16) and not all(torch.equal(seen[0], other) for other in seen)
