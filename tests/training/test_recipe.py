from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monai_diffaug.training.recipe import OF_SOME_RECIPES, Recipe, seeded
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError

OTHER_VALUES = {
    "lora": True,
    "text_encoder": True,
    "decoder": False,
    "freeze_encoder": True,
    "texture_weight": 0.1,
    "inpainter": "a",
    "vae": "a",
    "encoder": "a",
    "validator": "a",
    "prediction_type": "epsilon",
    "student_steps": 2,
    "guidance": 2.0,
}


class Plain(Recipe):
    name = "plain"


class Takes(Recipe):
    name = "takes"
    options = frozenset(OF_SOME_RECIPES)


@pytest.mark.parametrize("option", OF_SOME_RECIPES)
def test_an_option_of_other_recipes_is_refused_and_taken_by_its_own(option):
    Plain.check(FineTuneSettings())
    changed = FineTuneSettings(**{option: OTHER_VALUES[option]})
    with pytest.raises(TrainingInputError, match=f"--{option.replace('_', '-')} has no meaning for plain; leave it out"):
        Plain.check(changed)
    of_fresh = option in ("vae", "encoder", "prediction_type")
    Takes.check(replace(changed, model="fresh" if of_fresh else "tiny"))


@pytest.mark.parametrize("option", ["vae", "encoder", "prediction_type"])
def test_what_a_trained_model_brings_along_cannot_be_given(option):
    with pytest.raises(TrainingInputError, match=f"--{option.replace('_', '-')} is for --model fresh; tiny is trained as it is"):
        Takes.check(FineTuneSettings(**{option: OTHER_VALUES[option]}))


@pytest.mark.parametrize("option", ["lora", "freeze_encoder"])
def test_random_weights_are_neither_adapted_nor_kept(option):
    with pytest.raises(TrainingInputError, match="needs a trained model to start from, got --model fresh"):
        Takes.check(FineTuneSettings(model="fresh", **{option: True}))


def test_seeded_weights_repeat_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        with seeded(seed):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)
