from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monai_diffaug.models.medsam import build_sam, load_medsam, save_sam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes.medsam_recipe import MedSAMRecipe
from monai_diffaug.training.run_settings import FineTuneSettings

SETTINGS = FineTuneSettings(minutes=None, steps=2, batch_size=2, pictures=0)
SMALL = {
    "image_size": 64,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "window_size": 4,
    "global_attn_indexes": [1],
    "prompt_dim": 32,
    "mask_in_chans": 16,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "decoder_mlp_dim": 64,
    "box_as_mask": True,
}


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("sam")
    save_sam(build_sam(SMALL), SMALL, target)
    return str(target)


@pytest.mark.parametrize("lora", [False, True])
def test_training_writes_a_checkpoint_of_the_same_shape(tmp_path, slices, folder, lora):
    recipe = MedSAMRecipe(replace(SETTINGS, model=folder, lora=lora, rate=0.02), slices)
    fine_tune(recipe, recipe.settings, tmp_path)
    assert "lesions, " in (tmp_path / "training/settings.json").read_text()
    before, after = (load_medsam(ModelSpec("medsam", str(f)), "cpu") for f in (folder, tmp_path))
    assert after.box_as_mask is True
    old, new = before.sam.state_dict(), after.sam.state_dict()
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert any(name.startswith("mask_decoder") for name in changed)
    assert not any(name.startswith("prompt_encoder") for name in changed)
    encoder = {name for name in changed if name.startswith("image_encoder")}
    assert encoder and (not lora or all(".attn." in name for name in encoder))


def test_prompts_hold_the_lesion_in_their_box(slices, folder):
    recipe = MedSAMRecipe(replace(SETTINGS, model=folder), slices)
    recipe.reseed(0)
    for _ in range(20):
        image, mask, box = recipe._draw_prompt()
        x0, y0, x1, y1 = (int(v) for v in box[0])
        assert mask[0, 0, y0 : y1 + 2, x0 : x1 + 2].sum() >= 0.8 * mask.sum() > 0
        assert image.mean(0)[mask[0, 0] > 0].mean() > image.mean(0)[mask[0, 0] == 0].mean()


def test_sample_pictures_show_the_outlines(tmp_path, slices, folder):
    recipe = MedSAMRecipe(replace(SETTINGS, model=folder), slices)
    recipe.draw(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
