from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from monai_diffaug.models.registry import ModelSpec, spec_of
from monai_diffaug.models.validator import TINY_CONFIG, LatentSegmenter, load_validator
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes import validator_recipe as recipe_module
from monai_diffaug.training.recipes.vae_recipe import load_vae
from monai_diffaug.training.recipes.validator_recipe import ValidatorRecipe, with_views
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError

SETTINGS = FineTuneSettings(minutes=None, steps=2, batch_size=2, pictures=1)


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


@pytest.mark.slow
def test_training_writes_a_folder_with_its_vae_that_the_transform_takes(tmp_path, slices):
    from monai_diffaug.transforms.latent_validate import LatentValidate

    recipe = ValidatorRecipe(SETTINGS, slices)
    before = {name: value.clone() for name, value in recipe.segmenter.state_dict().items()}
    fine_tune(recipe, SETTINGS, tmp_path)
    after = load_validator(ModelSpec("validator", str(tmp_path)), "cpu").segmenter.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "vae/config.json").is_file() and (tmp_path / "training/samples/step_000002.png").is_file()
    assert json.loads((tmp_path / "training/settings.json").read_text())["data"].startswith("3 lesions, 1 normal slices, ")
    verdict = LatentValidate(str(tmp_path))(torch.rand(1, 64, 64), torch.ones(1, 64, 64))
    assert 0 <= verdict.score <= 1


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
@pytest.mark.slow
def test_fresh_weights_of_either_form_are_trained_and_load(tmp_path, slices, prediction_type):
    settings = replace(SETTINGS, model="fresh", prediction_type=prediction_type, pictures=0)
    recipe = ValidatorRecipe(settings, slices)
    before = {name: value.clone() for name, value in recipe.segmenter.state_dict().items()}
    fine_tune(recipe, settings, tmp_path)
    written = load_validator(ModelSpec("validator", str(tmp_path)), "cpu")
    assert written.segmenter.prediction_type == prediction_type
    assert any(not torch.allclose(value, before[name], atol=1e-4) for name, value in written.segmenter.state_dict().items())
    vae = load_vae("tiny")
    assert all(torch.equal(value, vae.state_dict()[name]) for name, value in written.vae.state_dict().items())


def test_fresh_weights_have_the_names_and_shapes_of_the_embedded_ones(slices):
    fresh, shipped = (ValidatorRecipe(replace(SETTINGS, model=model), slices).segmenter.state_dict() for model in ("fresh", "tiny"))
    assert {name: value.shape for name, value in fresh.items()} == {name: value.shape for name, value in shipped.items()}


def test_findings_without_an_outline_are_no_normal_tissue(slices):
    pneumonia = [replace(s, finding="pneumonia") for s in slices if s.is_normal]
    recipe = ValidatorRecipe(SETTINGS, [*slices, *pneumonia])
    assert not [s for s in recipe.slices if s.finding == "pneumonia"]


@pytest.mark.slow
def test_it_learns_to_find_the_lesions_of_a_few_images(slices):
    recipe = ValidatorRecipe(replace(SETTINGS, model="fresh", batch_size=2), slices[:1])
    recipe.reseed(0)
    optimizer = torch.optim.AdamW(recipe.segmenter.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss = recipe.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_adapters_are_refused(slices):
    with pytest.raises(TrainingInputError, match="--lora has no meaning for validator"):
        ValidatorRecipe(FineTuneSettings(lora=True), slices)


def test_another_kind_of_validator_is_refused_by_the_one_check(slices):
    other = torch.nn.Identity()
    with pytest.raises(ValueError, match="is no latent validator; give 'tiny'"):
        ValidatorRecipe(FineTuneSettings(model=spec_of("validator", other).source), slices)


def test_contrast_views_are_added_without_a_change_of_the_prediction():
    older = LatentSegmenter({name: value for name, value in TINY_CONFIG.items() if name != "contrast_views"}).eval()
    wider = with_views(older).eval()
    assert wider.views == tuple(TINY_CONFIG["contrast_views"]) and with_views(wider) is wider
    images, noise = torch.rand(2, 3, 64, 64), torch.randn(2, 4, 16, 16)
    steps = torch.tensor([999, 10])
    with torch.no_grad():
        assert torch.allclose(older(images, noise, steps), wider(images, noise, steps), atol=1e-5)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.slow
def test_lesions_stay_when_they_are_decoded_and_are_none_when_they_are_repainted(slices, kind, monkeypatch):
    recipe = ValidatorRecipe(SETTINGS, slices)
    recipe.reseed(0)
    recipe.crops.normal_share = recipe.crops.cover_share = 0.0
    batch = recipe.crops.draw_batch(2)
    monkeypatch.setattr(recipe_module, "ERASING_STEPS", 2)
    monkeypatch.setattr(recipe_module, "KIND_SHARES", tuple(float(i == kind) for i in range(3)))
    images, lesions = recipe._edited(batch)
    assert images.shape == batch.images.shape and images.dtype == torch.float32 and float(images.abs().max()) <= 1
    assert torch.equal(lesions, batch.lesions if kind == 0 else torch.zeros_like(lesions))
    far = torch.nn.functional.max_pool2d(batch.hidden, 17, 1, 8) == 0
    change = (images - batch.images).abs().amax(1, keepdim=True)
    assert float(change[far].max()) < 1e-5 and float(change[batch.hidden > 0].mean()) > 0.005


@pytest.mark.slow
def test_edited_crops_take_their_share_of_a_batch(slices, monkeypatch):
    monkeypatch.setattr(recipe_module, "EDITED_FIRST", 2)
    monkeypatch.setattr(recipe_module, "KIND_SHARES", (1.0, 0.0, 0.0))
    recipe = ValidatorRecipe(replace(SETTINGS, batch_size=4), slices)
    recipe.reseed(0)
    assert float(recipe.loss().detach()) > 0 and recipe.edited is not None
