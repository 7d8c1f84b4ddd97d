from __future__ import annotations

import pytest

from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.recipes.controlnet_recipe import ControlNetRecipe
from monai_diffaug.training.recipes.inpaint_recipe import InpaintRecipe
from monai_diffaug.training.run_settings import FineTuneSettings


@pytest.mark.parametrize("recipe", [InpaintRecipe, ControlNetRecipe])
def test_where_only_normal_images_are_held_out_the_trained_lesions_are_shown(recipe, datalist, random_inpainter, tmp_path):
    slices = load_slices(read_datalist(datalist))
    normal = [s for s in slices if s.is_normal]
    trainee = recipe(FineTuneSettings(model=random_inpainter, minutes=None, steps=1, decoder=False), slices, normal)
    trainee.draw(tmp_path / "shown.png")
    assert (tmp_path / "shown.png").stat().st_size > 1000
