from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes.inpaint_recipe import InpaintRecipe, lesion_weighted_loss
from monai_diffaug.training.run_settings import FineTuneSettings
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

SETTINGS = FineTuneSettings(minutes=None, steps=3, batch_size=2, pictures=1, decoder=False)


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory, random_inpainter) -> str:
    """Stable Diffusion 1.5's kinds of blocks and its scheduler (epsilon, PNDM), tiny and random."""
    from diffusers import PNDMScheduler, UNet2DConditionModel

    folder = tmp_path_factory.mktemp("sd")
    __import__("shutil").copytree(random_inpainter, folder, dirs_exist_ok=True)
    torch.manual_seed(1)
    UNet2DConditionModel(
        sample_size=16,
        in_channels=9,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=8,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1).save_pretrained(
        folder / "scheduler"
    )
    return str(folder)


def weights_of(folder: str | Path, part: str = "unet") -> dict[str, torch.Tensor]:
    model = load_inpainter(ModelSpec("inpainter", str(folder)), torch.device("cpu"))
    return {name: value.clone() for name, value in getattr(model, part).state_dict().items()}


def repaints(folder: Path) -> bool:
    edit = DiffusionLocalInpaint(str(folder), num_inference_steps=1).apply(torch.rand(1, 64, 64), torch.ones(1, 64, 64), "mass", seed=0)
    return bool(edit.record["applied"])


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_errors_under_the_mask_weigh_twice(kind):
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    target, inside, outside = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    inside[..., :2], outside[..., 2:] = 1.0, 1.0
    alpha = torch.tensor([0.5])
    ratio = lesion_weighted_loss(inside, target, mask, alpha, kind) / lesion_weighted_loss(outside, target, mask, alpha, kind)
    assert float(ratio) == pytest.approx(2)


def test_easy_steps_of_noise_prediction_weigh_less():
    one, mask = torch.ones(1, 4, 2, 2), torch.zeros(1, 1, 2, 2)
    easy, hard = (float(lesion_weighted_loss(one, 0 * one, mask, torch.tensor([a]), "epsilon")) for a in (0.99, 0.3))
    assert hard == pytest.approx(1) and easy == pytest.approx(5 / 99, rel=1e-3)


def test_full_training_writes_a_folder_that_model_takes(tmp_path, random_inpainter, slices):
    before = weights_of(random_inpainter)
    recipe = InpaintRecipe(replace(SETTINGS, model=random_inpainter), slices, slices[:1])
    fine_tune(recipe, recipe.settings, tmp_path)
    after = weights_of(tmp_path)
    assert after.keys() == before.keys() and all(after[k].shape == before[k].shape for k in before)
    assert not torch.equal(after["conv_out.weight"], before["conv_out.weight"])
    text = weights_of(tmp_path, "text_encoder")
    assert all(torch.equal(value, text[name]) for name, value in weights_of(random_inpainter, "text_encoder").items())
    assert repaints(tmp_path) and (tmp_path / "training/samples/step_000003.png").is_file() and not (tmp_path / "training/part").exists()


def test_lora_of_an_epsilon_model_is_merged_and_its_adapter_reproduces_it(tmp_path, sd_folder, slices):
    recipe = InpaintRecipe(replace(SETTINGS, model=sd_folder, lora=True, rank=2, text_encoder=True, rate=0.05), slices)
    assert recipe.prediction_type == "epsilon"
    trained = [name for name, p in recipe.model.unet.named_parameters() if p.requires_grad]
    assert trained and all("lora" in name for name in trained)
    fine_tune(recipe, recipe.settings, tmp_path)
    before, after = weights_of(sd_folder), weights_of(tmp_path)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".attn" in name for name in changed)
    assert repaints(tmp_path)

    from diffusers import StableDiffusionInpaintPipeline

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(sd_folder, safety_checker=None, local_files_only=True)
    pipeline.load_lora_weights(tmp_path / "adapter")
    pipeline.fuse_lora()
    name = sorted(changed)[0]
    fused = pipeline.unet.state_dict()[name.replace(".weight", ".base_layer.weight")]
    assert torch.allclose(fused, after[name], atol=1e-5)
    assert json.loads((tmp_path / "adapter/adapter.json").read_text())["parts"] == ["text_encoder", "unet"]
    words = {n for n, v in weights_of(sd_folder, "text_encoder").items() if not torch.equal(v, weights_of(tmp_path, "text_encoder")[n])}
    assert words and all("self_attn" in n for n in words)


def test_a_plain_text_to_image_model_is_trained_without_mask(tmp_path, random_inpainter_4ch, slices):
    recipe = InpaintRecipe(replace(SETTINGS, model=random_inpainter_4ch, steps=1), slices)
    fine_tune(recipe, recipe.settings, tmp_path)
    assert repaints(tmp_path)


def test_the_loss_falls_on_a_single_lesion(random_inpainter, slices):
    recipe = InpaintRecipe(replace(SETTINGS, model=random_inpainter, batch_size=4), slices[:1])
    recipe.reseed(0)
    optimizer = torch.optim.AdamW(recipe.model.unet.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = recipe.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
