from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.sampling.step import ddim_move
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes.few_steps_recipe import FewStepsRecipe, student_timesteps, velocity_of
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

SETTINGS = FineTuneSettings(minutes=None, steps=3, batch_size=2, pictures=0)


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


@pytest.fixture
def recipe(random_inpainter, slices) -> FewStepsRecipe:
    made = FewStepsRecipe(replace(SETTINGS, model=random_inpainter), slices)
    made.reseed(0)
    return made


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_a_move_is_the_step_of_diffusers_ddim(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    latents, prediction = (torch.randn(1, 4, 3, 3, generator=generator) for _ in range(2))
    for now, following in ((799, 599), (199, -1)):
        expected = scheduler.step(prediction, now, latents).prev_sample
        alpha = scheduler.alphas_cumprod.tolist()
        keep, move = ddim_move("v_prediction", alpha[now], alpha[following] if following >= 0 else float(scheduler.final_alpha_cumprod))
        torch.testing.assert_close(
            keep * latents + move * velocity_of(kind, prediction, latents, alpha[now]), expected, rtol=1e-4, atol=1e-4
        )


def test_a_student_with_the_teachers_steps_and_no_guidance_has_nothing_to_learn(random_inpainter, slices):
    recipe = FewStepsRecipe(replace(SETTINGS, model=random_inpainter, student_steps=12, guidance=1.0), slices)
    recipe.reseed(0)
    assert all(float(recipe.loss()) < 1e-9 for _ in range(4))


def test_the_target_ends_where_three_guided_steps_of_the_teacher_end(recipe):
    model, scheduler = recipe.model, recipe.model.scheduler
    scheduler.set_timesteps(12)
    generator = torch.Generator().manual_seed(1)
    noisy, masked = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 4, 16, 16, generator=generator)
    mask, context = torch.ones(1, 1, 16, 16), model.encode_text(["a mass"])
    states, reached = torch.cat([model.encode_text([""]), context]), noisy
    for timestep in scheduler.timesteps[3:6]:
        rows = torch.cat([reached, mask, masked], 1)
        with torch.no_grad():
            unconditional, conditional = model.denoise(torch.cat([rows, rows]), timestep, states).chunk(2)
        reached = scheduler.step(torch.lerp(unconditional, conditional, 3.0), timestep, reached).prev_sample
    start, end = 749, 499
    velocity = recipe._teacher_velocity(noisy, [mask, masked], context, start, end)
    keep, move = ddim_move("v_prediction", recipe.alphas[start], recipe.alphas[end])
    torch.testing.assert_close(keep * noisy + move * velocity, reached, rtol=1e-2, atol=5e-3)  # the betas are float32 there


def test_the_teacher_stays_as_it_is_while_the_student_learns(recipe, tmp_path, random_inpainter):
    before = {name: value.clone() for name, value in recipe.teacher.state_dict().items()}
    fine_tune(recipe, recipe.settings, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in recipe.teacher.state_dict().items())
    student = load_inpainter(ModelSpec("inpainter", str(tmp_path)), torch.device("cpu"))
    assert any(not torch.equal(value, before[name]) for name, value in student.unet.state_dict().items())
    image, mask = torch.rand(1, 64, 64), torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    edit = DiffusionLocalInpaint(str(tmp_path), num_inference_steps=4, guidance_scale=1.0).apply(image, mask, "a mass", seed=0)
    assert edit.record["applied"]


@pytest.mark.slow
def test_the_student_comes_closer_to_the_teacher(random_inpainter, slices, tmp_path):
    settings = replace(SETTINGS, model=random_inpainter, steps=80, rate=3e-4, batch_size=4)
    recipe = FewStepsRecipe(settings, slices)
    recipe.reseed(7)
    before = sum(float(recipe.loss()) for _ in range(12))
    fine_tune(recipe, settings, tmp_path)
    recipe.reseed(7)
    assert sum(float(recipe.loss()) for _ in range(12)) < 0.7 * before


def test_any_scheduler_becomes_ddim_from_pure_noise(random_inpainter, slices, tmp_path):
    import shutil

    shutil.copytree(random_inpainter, tmp_path / "model")
    DPMSolverMultistepScheduler(prediction_type="epsilon").save_pretrained(tmp_path / "model/scheduler")
    recipe = FewStepsRecipe(replace(SETTINGS, model=str(tmp_path / "model")), slices)
    assert type(recipe.model.scheduler).__name__ == "DDIMScheduler" and recipe.model.scheduler.config.timestep_spacing == "trailing"
    recipe.reseed(0)
    assert float(recipe.loss()) > 0


def test_a_start_without_a_teacher_is_refused(slices, random_inpainter):
    with pytest.raises(TrainingInputError, match="needs a trained model, got --model fresh"):
        FewStepsRecipe(replace(SETTINGS, model="fresh"), slices)
    with pytest.raises(TrainingInputError, match=r"--student-steps must be in \[1, 1000\], got 2000"):
        FewStepsRecipe(replace(SETTINGS, model=random_inpainter, student_steps=2000), slices)
    assert student_timesteps(1000, 1) == [999]
