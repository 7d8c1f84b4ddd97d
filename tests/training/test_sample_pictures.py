from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.recipes.controlnet_recipe import ControlNetRecipe
from monai_diffaug.training.recipes.inpaint_recipe import InpaintRecipe
from monai_diffaug.training.recipes.vae_recipe import load_vae
from monai_diffaug.training.run_settings import FineTuneSettings
from monai_diffaug.training.sample_pictures import draw_masks, draw_reconstructions

COMMON = {"minutes": None, "steps": 1}


@pytest.fixture(scope="module")
def slices(datalist):
    return load_slices(read_datalist(datalist))


@pytest.mark.parametrize("recipe", [InpaintRecipe, ControlNetRecipe])
def test_where_only_normal_images_are_held_out_the_trained_lesions_are_shown(recipe, slices, random_inpainter, tmp_path):
    normal = [s for s in slices if s.is_normal]
    start = {"model": random_inpainter, "decoder": False} if recipe is InpaintRecipe else {"model": "fresh", "inpainter": random_inpainter}
    trainee = recipe(FineTuneSettings(**COMMON, **start), slices, normal)
    assert trainee.held_out == [s for s in slices if s.has_lesion]
    trainee.draw(tmp_path / "shown.png")
    assert Image.open(tmp_path / "shown.png").height > 3 * 256, "one row per lesion"


def test_a_predicted_mask_is_brightened(slices, tmp_path):
    chosen = slices[0]
    pictures = []
    for share in (0, 1):
        draw_masks([chosen], [torch.full((1, *chosen.lesion.shape), bool(share))], tmp_path / "p.png", "a caption")
        pictures.append(np.asarray(Image.open(tmp_path / "p.png").convert("L"), float))
    result = slice(2 * 262 + 6, 3 * 262)  # the third panel
    assert pictures[1][30:250, result].mean() > pictures[0][30:250, result].mean() + 20


def test_reconstructions_need_no_lesion_and_any_size(slices, tmp_path):
    normal = next(s for s in slices if s.is_normal)
    odd = replace(normal, stored=normal.stored[:, :70, :67], lesion=normal.lesion[:70, :67], labelled=normal.labelled[:70, :67])
    draw_reconstructions(load_vae("tiny"), [odd], tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
