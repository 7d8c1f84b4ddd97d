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
from monai_diffaug.training.recipes.inpaint_recipe import InpaintRecipe
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


@pytest.mark.slow
def test_lora_of_an_epsilon_model_is_merged_and_its_adapter_reproduces_it(tmp_path, sd_folder, slices):
    recipe = InpaintRecipe(replace(SETTINGS, model=sd_folder, lora=True, rank=2, text_encoder=True, rate=0.05), slices)
    assert recipe.model.scheduler.config.prediction_type == "epsilon"
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


def test_fresh_weights_are_trained_with_their_text_encoder_and_written_as_a_folder_that_model_takes(tmp_path, slices):
    recipe = InpaintRecipe(replace(SETTINGS, model="fresh", vae="tiny", batch_size=1), slices)
    before = {part: {n: v.clone() for n, v in getattr(recipe.model, part).state_dict().items()} for part in ("unet", "text_encoder", "vae")}
    assert fine_tune(recipe, recipe.settings, tmp_path) == 3
    for part in ("unet", "text_encoder"):
        after = weights_of(tmp_path, part)
        assert any(not torch.equal(after[name], value) for name, value in before[part].items()), part
    assert all(torch.equal(value, before["vae"][name]) for name, value in weights_of(tmp_path, "vae").items())
    scheduler = load_inpainter(ModelSpec("inpainter", str(tmp_path)), torch.device("cpu")).scheduler
    assert scheduler.config.prediction_type == "v_prediction" and float(scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-6)
    assert repaints(tmp_path)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_fresh_weights_have_the_names_and_shapes_of_the_embedded_ones(slices, part):
    fresh = getattr(InpaintRecipe(replace(SETTINGS, model="fresh"), slices).model, part).state_dict()
    assert {name: value.shape for name, value in fresh.items()} == {name: value.shape for name, value in weights_of("tiny", part).items()}


def test_fresh_weights_depend_on_the_seed_alone(slices):
    def first_weight(seed: int) -> torch.Tensor:
        return InpaintRecipe(replace(SETTINGS, model="fresh", seed=seed), slices).model.unet.conv_in.weight

    torch.manual_seed(5)
    first = first_weight(1)
    torch.manual_seed(6)
    assert torch.equal(first, first_weight(1)) and not torch.equal(first, first_weight(2))


def test_a_plain_text_to_image_model_is_trained_without_mask(tmp_path, random_inpainter_4ch, slices):
    recipe = InpaintRecipe(replace(SETTINGS, model=random_inpainter_4ch, steps=1), slices)
    fine_tune(recipe, recipe.settings, tmp_path)
    assert repaints(tmp_path)


def test_the_loss_falls_on_a_single_lesion(random_inpainter, slices):
    recipe = InpaintRecipe(replace(SETTINGS, model=random_inpainter, batch_size=4), slices[:1])
    recipe.reseed(0)
    optimizer = torch.optim.AdamW(recipe.model.unet.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss = recipe.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
