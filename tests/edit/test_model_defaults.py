from __future__ import annotations

import shutil

import diffusers
import pytest
import torch

from monai_diffaug.edit.model_defaults import with_model_defaults
from monai_diffaug.edit.options import InpaintOptions, Noise, RepaintSettings
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.painting import Painting, write_paintings
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

TABLE = {"ultrasound": Painting(1.0, noise_gain=0.2), "ct": Painting(2.0, (0.0, 0.5), acquisition=True)}
US, CT = ((1.0, "ultrasound of breast"),), ((0.2, "ultrasound of breast"), (0.8, "CT of liver"))


@pytest.fixture
def folder(tmp_path, random_inpainter) -> str:
    shutil.copytree(random_inpainter, tmp_path / "model")
    write_paintings(tmp_path / "model", TABLE)
    return str(tmp_path / "model")


@pytest.fixture
def model(folder):
    return load_inpainter(ModelSpec("inpainter", folder), torch.device("cpu"))


def filled(model, prompt, **options) -> tuple:
    scale = options.pop("guidance_scale", None)
    settings = with_model_defaults(RepaintSettings(guidance_scale=scale, options=InpaintOptions(**options)), model, prompt)
    noise = settings.options.noise
    return settings.guidance_scale, settings.options.guidance_interval, noise.gain, noise.acquisition


def test_what_is_left_open_is_filled_in_by_the_heaviest_prompt(model):
    assert filled(model, US) == (1.0, (0.0, 1.0), 0.2, False)
    assert filled(model, CT) == (2.0, (0.0, 0.5), 0.0, True)
    assert filled(model, ((1.0, "MRI of brain"),)) == (3.0, (0.0, 1.0), 0.0, False)


def test_what_the_user_says_stays(model):
    assert filled(model, US, guidance_scale=5.0, guidance_interval=(0.1, 0.2), noise=Noise(gain=0.0, acquisition=True)) == (
        5.0,
        (0.1, 0.2),
        0.0,
        True,
    )


def test_nothing_is_added_to_inverted_noise_and_no_gain_to_another_scheduler(model):
    assert filled(model, US, noise=Noise(source="inverted"))[2:] == (0.0, False)
    model.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(model.scheduler.config)
    assert filled(model, US)[2] == 0.0


def test_a_batch_of_two_modalities_gives_what_each_gives_alone(folder):
    image = torch.rand(1, 48, 48, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 48, 48)
    mask[:, 12:30, 16:34] = 1
    paint = DiffusionLocalInpaint(folder, num_inference_steps=2, window=(0.0, 1.0))
    prompts = ["CT of liver, cyst", "ultrasound of breast, benign mass", "CT of liver, cyst"]
    together = paint.apply_batch([image] * 3, [mask] * 3, prompts, seeds=[1, 2, 3])
    alone = [paint.apply(image, mask, prompt, seed=seed) for prompt, seed in zip(prompts, (1, 2, 3), strict=True)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.image, other.image, rtol=0, atol=1e-5)
    explicit = DiffusionLocalInpaint(
        folder,
        num_inference_steps=2,
        window=(0.0, 1.0),
        guidance_scale=1.0,
        options=InpaintOptions(noise=Noise(gain=0.2, acquisition=False)),
    )
    torch.testing.assert_close(explicit.apply(image, mask, prompts[1], seed=2).image, alone[1].image, rtol=0, atol=1e-6)
