from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monai_diffaug.edit.options import ControlNet, InpaintOptions
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes.controlnet_recipe import ControlNetRecipe
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

SETTINGS = FineTuneSettings(minutes=None, steps=3, batch_size=2, pictures=1)


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


@pytest.mark.parametrize("kind", ["random_inpainter", "random_inpainter_4ch"])
def test_training_writes_a_folder_that_the_transform_takes_and_leaves_the_inpainter_alone(kind, tmp_path, request, slices):
    source = request.getfixturevalue(kind)
    recipe = ControlNetRecipe(replace(SETTINGS, model=source), slices, slices[:1])
    before = {name: value.clone() for name, value in recipe.model.unet.state_dict().items()}
    fine_tune(recipe, recipe.settings, tmp_path)
    assert "lesions, " in (tmp_path / "training/settings.json").read_text()
    assert all(torch.equal(value, before[name]) for name, value in recipe.model.unet.state_dict().items())
    assert (tmp_path / "training/samples/step_000003.png").is_file()
    image, mask = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    with_edges, plain = (
        DiffusionLocalInpaint(source, options=InpaintOptions(control=ControlNet(net)), num_inference_steps=2)
        .apply(image, mask, "mass", seed=0)
        .image
        for net in (str(tmp_path), None)
    )
    assert not torch.equal(with_edges, plain)


def test_the_loss_falls_on_one_lesion(random_inpainter, slices):
    recipe = ControlNetRecipe(replace(SETTINGS, model=random_inpainter, batch_size=4), slices[:1])
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


def test_lora_is_refused(random_inpainter, slices):
    with pytest.raises(TrainingInputError, match="leave out --lora"):
        ControlNetRecipe(replace(SETTINGS, model=random_inpainter, lora=True), slices)
