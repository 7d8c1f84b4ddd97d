from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monai_diffaug.edit.options import InpaintOptions, SemanticController
from monai_diffaug.models.registry import ModelSpec, tiny_folder
from monai_diffaug.models.semantic_controller import load_semantic_controller
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes.semantic_controller_recipe import SemanticControllerRecipe
from monai_diffaug.training.run_settings import FineTuneSettings
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

SETTINGS = FineTuneSettings(model="fresh", minutes=None, steps=10, batch_size=2, pictures=1)


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


def test_training_writes_a_folder_that_the_transform_takes_and_leaves_the_inpainter_alone(random_inpainter, tmp_path, slices):
    recipe = SemanticControllerRecipe(replace(SETTINGS, inpainter=random_inpainter, rate=0.02), slices, slices[:1])
    before = {name: value.clone() for name, value in recipe.model.unet.state_dict().items()}
    assert fine_tune(recipe, recipe.settings, tmp_path) == 10
    assert all(torch.equal(value, before[name]) for name, value in recipe.model.unet.state_dict().items())
    assert (tmp_path / "training/samples/step_000010.png").is_file()
    image, mask = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    steered, plain = (
        DiffusionLocalInpaint(random_inpainter, options=InpaintOptions(control=control), num_inference_steps=2)
        .apply(image, mask, "mass", seed=0)
        .image
        for control in (SemanticController(str(tmp_path)), None)
    )
    assert not torch.equal(steered, plain)


def test_the_adapter_waits_for_the_distillation_to_end(random_inpainter, slices):
    recipe = SemanticControllerRecipe(replace(SETTINGS, inpainter=random_inpainter), slices)
    recipe.reseed(0)

    def trained(progress: float) -> set[str]:
        recipe.semantic.parts.zero_grad(set_to_none=True)
        torch.autograd.backward(recipe.loss(progress))
        return {part for part, module in recipe.modules.items() if any(p.grad is not None for p in module.parameters())}

    assert trained(0.0) == trained(0.39) == {"controller"}
    assert trained(0.41) == {"controller", "adapter"}


def test_the_distillation_learns_the_hidden_features_of_a_few_lesions(random_inpainter, slices):
    recipe = SemanticControllerRecipe(replace(SETTINGS, inpainter=random_inpainter), slices[:1])
    recipe.reseed(0)
    recipe.ring.renewal = 0
    optimizer = torch.optim.AdamW(recipe.semantic.parts.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss = recipe.loss(0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_same_seed_gives_the_same_losses(random_inpainter, slices):
    recipe = SemanticControllerRecipe(replace(SETTINGS, inpainter=random_inpainter), slices)
    losses = []
    for seed in (1, 1, 2):
        recipe.reseed(seed)
        losses.append([float(recipe.loss(progress).detach()) for progress in (0.1, 0.9)])
    assert losses[0] == losses[1] != losses[2]


def test_the_embedded_controller_is_trained_further_if_it_fits(slices, random_inpainter):
    started = SemanticControllerRecipe(replace(SETTINGS, model="tiny"), slices)
    shipped = load_semantic_controller(ModelSpec("semantic_controller"), torch.device("cpu")).parts.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in started.semantic.parts.state_dict().items())
    assert all(p.requires_grad for p in started.semantic.parts.parameters())
    with pytest.raises(ValueError, match="was made for a UNet with cross-attentions of widths"):
        SemanticControllerRecipe(replace(SETTINGS, model="tiny", inpainter=random_inpainter), slices)


def test_fresh_weights_have_the_names_and_shapes_of_the_embedded_ones(slices):
    fresh = SemanticControllerRecipe(SETTINGS, slices).semantic.parts.state_dict()
    shipped = load_semantic_controller(ModelSpec("semantic_controller"), torch.device("cpu")).parts.state_dict()
    assert {name: value.shape for name, value in fresh.items()} == {name: value.shape for name, value in shipped.items()}


def test_the_encoder_is_written_as_a_path_that_holds_everywhere(random_inpainter, tmp_path, slices, monkeypatch):
    (tmp_path / "sam").symlink_to(tiny_folder("medsam"))
    monkeypatch.chdir(tmp_path)
    recipe = SemanticControllerRecipe(replace(SETTINGS, inpainter=random_inpainter, encoder="sam"), slices)
    recipe.write(tmp_path / "out")
    monkeypatch.chdir("/")
    model = load_semantic_controller(ModelSpec("semantic_controller", str(tmp_path / "out")), torch.device("cpu"))
    assert model.config.encoder == str(tiny_folder("medsam"))
