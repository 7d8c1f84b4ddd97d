from __future__ import annotations

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from monai_diffaug.edit.options import ControlNet, InpaintOptions
from monai_diffaug.masks.edges import control_image
from monai_diffaug.models.controlnet import load_controlnet
from monai_diffaug.models.registry import ModelSpec, tiny_folder
from monai_diffaug.training.crop_sampler import Crop
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes.controlnet_recipe import ControlNetRecipe, augmented_control, noisy_steps
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

SETTINGS = FineTuneSettings(model="fresh", minutes=None, steps=3, batch_size=2, pictures=1)


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


def made_crop(size: int = 64, *, has_lesion: bool = True, is_whole: bool = False) -> Crop:
    mask = torch.zeros(1, size, size)
    mask[:, 20:40, 24:44] = 1
    return Crop(torch.rand(3, size, size) * 2 - 1, mask, "ultrasound of breast, benign mass", has_lesion, is_whole, None)


@pytest.mark.parametrize("kind", ["random_inpainter", "random_inpainter_4ch"])
def test_training_writes_a_folder_that_the_transform_takes_and_leaves_the_inpainter_alone(kind, tmp_path, request, slices):
    source = request.getfixturevalue(kind)
    recipe = ControlNetRecipe(replace(SETTINGS, inpainter=source), slices, slices[:1])
    before = {name: value.clone() for name, value in recipe.model.unet.state_dict().items()}
    fine_tune(recipe, recipe.settings, tmp_path)
    assert "lesions, " in (tmp_path / "training/settings.json").read_text()
    assert all(torch.equal(value, before[name]) for name, value in recipe.model.unet.state_dict().items())
    assert (tmp_path / "training/samples/step_000003.png").is_file()
    image, mask = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    with_edges, plain = (
        DiffusionLocalInpaint(source, options=InpaintOptions(control=control), num_inference_steps=2)
        .apply(image, mask, "mass", seed=0)
        .image
        for control in (ControlNet(str(tmp_path)), None)
    )
    assert not torch.equal(with_edges, plain)


def test_fresh_weights_for_the_embedded_inpainter_have_the_shapes_of_the_embedded_controlnet(slices):
    fresh = ControlNetRecipe(SETTINGS, slices).controlnet.state_dict()
    shipped = load_controlnet(ModelSpec("controlnet", str(tiny_folder("controlnet"))), torch.device("cpu")).state_dict()
    assert {name: value.shape for name, value in fresh.items()} == {name: value.shape for name, value in shipped.items()}


def test_a_trained_controlnet_is_trained_further_if_it_fits(slices, random_inpainter):
    recipe = ControlNetRecipe(replace(SETTINGS, model="tiny"), slices)
    shipped = load_controlnet(ModelSpec("controlnet"), torch.device("cpu")).state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in recipe.controlnet.state_dict().items())
    assert recipe.rate < ControlNetRecipe(SETTINGS, slices).rate and not recipe.fast
    with pytest.raises(ValueError, match="does not fit the UNet"):
        ControlNetRecipe(replace(SETTINGS, model="tiny", inpainter=random_inpainter), slices)


def test_the_first_loss_is_the_inpainters_and_only_the_controlnet_learns(random_inpainter, slices):
    recipe = ControlNetRecipe(replace(SETTINGS, inpainter=random_inpainter), slices)
    recipe.reseed(0)
    first = recipe.loss()
    first.backward()
    assert recipe.controlnet.controlnet_mid_block.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in recipe.model.unet.parameters())
    recipe.reseed(0)
    rows = recipe.ring._rows
    recipe.ring._rows = [((*tensors[:3], torch.zeros_like(tensors[3])), text) for tensors, text in rows]
    assert float(recipe.loss().detach()) == pytest.approx(float(first.detach()))


@pytest.mark.parametrize("sampler", ["EulerDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_the_loss_does_not_depend_on_the_sampler_that_the_folder_names(random_inpainter, slices, sampler):
    recipe, losses = ControlNetRecipe(replace(SETTINGS, inpainter=random_inpainter), slices), []
    config = recipe.model.scheduler.config
    for name in ("DDIMScheduler", sampler):
        recipe.model.scheduler = getattr(diffusers, name).from_config(config)
        recipe.reseed(0)
        losses.append(float(recipe.loss().detach()))
    assert losses[0] == losses[1]


def test_the_loss_falls_on_one_lesion(random_inpainter, slices):
    recipe = ControlNetRecipe(replace(SETTINGS, inpainter=random_inpainter, batch_size=4), slices[:1])
    recipe.reseed(0)
    optimizer = torch.optim.AdamW(recipe.controlnet.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = recipe.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_control_is_varied_but_always_shows_the_outline():
    rng, crop = np.random.RandomState(0), made_crop()
    controls = [augmented_control(rng, crop) for _ in range(20)]
    outline = control_image(torch.zeros(1, 1, 64, 64), crop.mask[None])[0] > 0
    assert len({float(c.sum()) for c in controls}) > 10
    near = [torch.nn.functional.max_pool2d(c[None], 3, 1, 1)[0][outline] for c in controls]
    assert min(float(values.mean()) for values in near) > 0.3
    assert all(c.shape == (1, 64, 64) and float(c.min()) >= 0 and float(c.max()) <= 1 for c in controls)


def test_a_free_shape_is_no_outline_where_the_whole_crop_is_hidden():
    flat = made_crop(has_lesion=False, is_whole=True)._replace(image=torch.zeros(3, 64, 64))
    assert not any(augmented_control(np.random.RandomState(k), flat).any() for k in range(5))
    assert augmented_control(np.random.RandomState(0), flat._replace(has_lesion=True)).any()


def test_timesteps_lean_towards_noise_and_stay_in_range():
    steps = noisy_steps(4000, 1000, torch.Generator().manual_seed(0))
    assert int(steps.min()) >= 0 and int(steps.max()) == 999
    assert float(steps.float().mean()) == pytest.approx(750, abs=20)


@pytest.mark.parametrize("option", ["lora", "text_encoder"])
def test_options_of_other_recipes_are_refused(random_inpainter, slices, option):
    with pytest.raises(TrainingInputError, match=f"--{option.replace('_', '-')} has no meaning for controlnet; leave it out"):
        ControlNetRecipe(replace(SETTINGS, inpainter=random_inpainter, **{option: True}), slices)
