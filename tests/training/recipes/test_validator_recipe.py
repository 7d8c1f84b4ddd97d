from __future__ import annotations

import json

import pytest
import torch

from monai_diffaug.models.registry import ModelSpec, spec_of
from monai_diffaug.models.validator import load_validator
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes.validator_recipe import ValidatorRecipe
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError

SETTINGS = FineTuneSettings(minutes=None, steps=2, batch_size=2, pictures=1)


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


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


def test_normal_crops_have_an_empty_mask_and_lesions_do_not(slices):
    recipe = ValidatorRecipe(SETTINGS, slices)
    recipe.reseed(0)
    filled = recipe.crops.draw(40).masks.flatten(1).any(1)
    assert 0.5 < float(filled.float().mean()) < 0.95


def test_adapters_are_refused(slices):
    with pytest.raises(TrainingInputError, match="not for the validator"):
        ValidatorRecipe(FineTuneSettings(lora=True), slices)


def test_another_kind_of_validator_is_refused_by_the_one_check(slices):
    other = torch.nn.Identity()
    with pytest.raises(ValueError, match="is no latent validator; give 'tiny'"):
        ValidatorRecipe(FineTuneSettings(model=spec_of("validator", other).source), slices)
