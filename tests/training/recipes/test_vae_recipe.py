from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.decoder_loss import psnr_db
from monai_diffaug.training.embedded.architectures import build_vae
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes.inpaint_recipe import InpaintRecipe
from monai_diffaug.training.recipes.vae_recipe import VaeRecipe, load_vae
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError
from monai_diffaug.training.texture_loss import band_energies

SETTINGS = FineTuneSettings(model="fresh", minutes=None, steps=2, batch_size=2, pictures=1)


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


def weights(vae) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vae.state_dict().items()}


def test_fresh_training_writes_a_folder_that_vae_takes_with_its_scaling_factor_measured(tmp_path, slices):
    recipe = VaeRecipe(SETTINGS, slices)
    before = weights(recipe.vae)
    fine_tune(recipe, SETTINGS, tmp_path)
    vae = load_vae(str(tmp_path))
    for part in ("encoder", "decoder"):
        assert any(not torch.equal(value, before[name]) for name, value in weights(vae).items() if name.startswith(part))
    with torch.no_grad():
        latents = torch.cat([vae.encode(recipe._draw(recipe.crops, 32)).latent_dist.mode() for _ in range(8)])
    assert float(latents.std()) * vae.config.scaling_factor == pytest.approx(1, abs=0.1)
    assert (tmp_path / "training/samples/step_000002.png").is_file()
    inpaint = InpaintRecipe(replace(SETTINGS, vae=str(tmp_path), decoder=False), slices)
    assert inpaint.model.scaling_factor == vae.config.scaling_factor


def test_a_frozen_encoder_is_bit_identical_after_training_and_so_is_the_scaling_factor(tmp_path, slices):
    settings = replace(SETTINGS, model="tiny", freeze_encoder=True, steps=12)  # an average turns -0 into 0 from the tenth step on
    before = load_vae("tiny")
    fine_tune(VaeRecipe(settings, slices), settings, tmp_path)
    after = load_vae(str(tmp_path))
    for name, value in before.state_dict().items():
        if name.startswith(("encoder", "quant_conv")):
            assert value.numpy().tobytes() == after.state_dict()[name].numpy().tobytes(), name
    assert any(
        not torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items() if name.startswith("decoder")
    )
    assert after.config.scaling_factor == before.config.scaling_factor


@pytest.mark.slow
def test_training_lowers_the_error_on_the_images(slices):
    recipe = VaeRecipe(replace(SETTINGS, batch_size=4), slices)
    recipe.reseed(0)
    crops = recipe._draw(recipe.crops, 8)

    @torch.no_grad()
    def reached_db() -> float:
        return psnr_db(recipe.vae.decode(recipe.vae.encode(crops).latent_dist.mode()).sample, crops)

    first, optimizer = reached_db(), torch.optim.AdamW(recipe.vae.parameters(), lr=recipe.rate)
    for _ in range(40):
        loss = recipe.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert reached_db() > first + 3


@pytest.mark.slow
def test_the_texture_weight_raises_the_loss_and_with_it_the_fine_energy_of_a_blurry_decoder(slices):
    """The energy of the finest band of decoded crops over that of the crops, after a few steps from the embedded weights, blurred."""

    def reached(weight: float) -> tuple[float, float, float, float]:
        recipe = VaeRecipe(replace(SETTINGS, model="tiny", freeze_encoder=True, texture_weight=weight, batch_size=4), slices)
        recipe.reseed(0)
        with torch.no_grad():  # a decoder that shows a quarter of the fine detail
            recipe.vae.decoder.conv_out.weight *= 0.25
            recipe.vae.decoder.conv_out.weight += 0.75 * recipe.vae.decoder.conv_out.weight.mean((2, 3), keepdim=True)
        crops = recipe._draw(recipe.crops, 8)

        @torch.no_grad()
        def fine_share() -> float:
            decoded = recipe.vae.decode(recipe.vae.encode(crops).latent_dist.mode()).sample
            return float((band_energies(decoded)[0].mean() / band_energies(crops)[0].mean()).sqrt())

        with torch.no_grad():
            recipe.reseed(1)
            loss_before = float(recipe.loss())
            plain = VaeRecipe(replace(recipe.settings, texture_weight=0.0), slices)
            plain.vae.load_state_dict(recipe.vae.state_dict())
            plain.reseed(1)
            plain_loss = float(plain.loss())
        before, optimizer = fine_share(), torch.optim.AdamW(recipe.vae.decoder.parameters(), lr=recipe.rate)
        for _ in range(12):
            loss = recipe.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return before, fine_share(), plain_loss, loss_before

    blurry, textured, plain_loss, loss = reached(0.5)
    assert textured > blurry + 0.1 and loss > plain_loss + 0.05, (blurry, textured, plain_loss, loss)


def test_fresh_weights_have_the_names_and_shapes_of_the_embedded_ones():
    fresh, shipped = build_vae().state_dict(), load_vae("tiny").state_dict()
    assert {name: value.shape for name, value in fresh.items()} == {name: value.shape for name, value in shipped.items()}


def test_no_group_norm_has_a_single_channel_per_group():
    norms = [m for m in build_vae().modules() if isinstance(m, torch.nn.GroupNorm)]
    assert norms and all(norm.num_channels // norm.num_groups > 1 for norm in norms)


def test_images_without_a_lesion_are_enough(slices):
    recipe = VaeRecipe(SETTINGS, [s for s in slices if s.is_normal])
    recipe.reseed(0)
    assert torch.isfinite(recipe.loss())


def test_a_frozen_encoder_needs_a_trained_model(slices):
    with pytest.raises(TrainingInputError, match="--freeze-encoder needs a trained model to start from, got --model fresh"):
        VaeRecipe(replace(SETTINGS, freeze_encoder=True), slices)


def test_a_source_that_is_no_autoencoder_is_named(tmp_path):
    with pytest.raises(ModelSourceError, match="config.json is missing; give 'tiny'"):
        load_vae(str(tmp_path))
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    with pytest.raises(ValueError, match="holds a AutoencoderTiny, expected an AutoencoderKL"):
        load_vae(str(tmp_path))
