from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_diffaug.models.medsam import TINY_CONFIG, build_sam, load_medsam, save_sam
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training.datalist import read_datalist
from monai_diffaug.training.labelled_slices import load_slices
from monai_diffaug.training.loop import fine_tune
from monai_diffaug.training.recipes import medsam_recipe
from monai_diffaug.training.recipes.medsam_recipe import MedSAMRecipe, intersection_over_union, mask_loss
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError

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


def test_fresh_weights_are_trained_prompt_encoder_included_and_load(tmp_path, slices):
    settings = replace(SETTINGS, model="fresh", batch_size=1)
    recipe = MedSAMRecipe(settings, slices)
    before = {name: value.clone() for name, value in recipe.sam.state_dict().items()}
    fine_tune(recipe, settings, tmp_path)
    written = load_medsam(ModelSpec("medsam", str(tmp_path)), "cpu")
    after = written.sam.state_dict()
    assert written.box_as_mask is True and after.keys() == before.keys()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.allclose(value, before[name], atol=1e-4)}
    assert {"image_encoder", "mask_decoder", "prompt_encoder"} <= changed


def test_fresh_weights_have_the_names_and_shapes_of_the_embedded_ones(slices):
    fresh, shipped = (MedSAMRecipe(replace(SETTINGS, model=model), slices) for model in ("fresh", "tiny"))
    assert {n: v.shape for n, v in fresh.sam.state_dict().items()} == {n: v.shape for n, v in shipped.sam.state_dict().items()}
    assert {k: fresh.config[k] for k in TINY_CONFIG} == {k: shipped.config[k] for k in TINY_CONFIG} == dict(TINY_CONFIG)


def test_a_frozen_encoder_is_bit_identical_after_training_and_the_decoder_is_not(tmp_path, slices):
    settings = replace(SETTINGS, model="tiny", freeze_encoder=True, batch_size=1, steps=12)  # an average turns -0 into 0 from step 10 on
    before = load_medsam(ModelSpec("medsam")).sam.state_dict()
    fine_tune(MedSAMRecipe(settings, slices), settings, tmp_path)
    after = load_medsam(ModelSpec("medsam", str(tmp_path))).sam.state_dict()
    for name, weights in before.items():
        if name.startswith("image_encoder."):
            assert weights.numpy().tobytes() == after[name].numpy().tobytes(), name
    assert any(not torch.equal(weights, after[name]) for name, weights in before.items() if name.startswith("mask_decoder."))


def test_a_frozen_encoder_takes_no_adapters(slices, folder):
    with pytest.raises(TrainingInputError, match="--lora trains adapters of the encoder, which --freeze-encoder leaves as it is"):
        MedSAMRecipe(replace(SETTINGS, model=folder, lora=True, freeze_encoder=True), slices)


def test_gradients_reach_the_relative_positions_and_every_part_of_the_prompt(slices):
    recipe = MedSAMRecipe(replace(SETTINGS, model="fresh", batch_size=1), slices)
    recipe.reseed(0)
    recipe.loss().backward()
    for name in (
        "image_encoder.blocks.0.attn.rel_pos_h",
        "image_encoder.blocks.3.attn.rel_pos_w",
        "image_encoder.pos_embed",
        "prompt_encoder.mask_downscaling.0.weight",
        "prompt_encoder.point_embeddings.2.weight",
        "mask_decoder.iou_prediction_head.layers.0.weight",
    ):
        assert recipe.sam.get_parameter(name).grad.abs().sum() > 0, name


def test_a_decoy_box_teaches_the_iou_head_but_not_the_mask(slices, folder):
    recipe = MedSAMRecipe(replace(SETTINGS, model=folder, batch_size=1), slices)
    recipe.reseed(0)
    prompts = recipe.draw_prompts()
    embedding = torch.randn(1, 32, 8, 8)
    recipe._prompt_loss(embedding[0], prompts._replace(is_real=torch.zeros(2, dtype=torch.bool))).backward()
    assert recipe.sam.mask_decoder.iou_prediction_head.layers[0].weight.grad.abs().sum() > 0
    assert recipe.sam.mask_decoder.output_hypernetworks_mlps[0].layers[0].weight.grad.abs().sum() == 0


def test_prompts_have_boxes_around_their_masks_and_decoys_around_nothing(slices, folder, monkeypatch):
    monkeypatch.setattr(medsam_recipe, "DECOY_SHARE", 0.5)
    recipe = MedSAMRecipe(replace(SETTINGS, model=folder), slices)
    recipe.reseed(0)
    decoys = 0
    for _ in range(40):
        image, masks, boxes, is_real = recipe.draw_prompts()
        assert image.shape == (3, 64, 64) and float(image.min()) == 0 and float(image.max()) == 1
        assert bool(is_real[0]) and boxes.min() >= 0 and boxes.max() <= 64
        for mask, box, real in zip(masks[:, 0], boxes, is_real, strict=True):
            x0, y0, x1, y1 = box.tolist()
            assert x1 - x0 >= 2 and y1 - y0 >= 2
            share = mask[max(int(y0) - 2, 0) : int(y1) + 3, max(int(x0) - 2, 0) : int(x1) + 3].sum() / mask.sum()
            if real:
                assert float(share) > 0.8
            else:
                decoys += 1
                assert not mask[int(y0) : int(y1), int(x0) : int(x1)].any()
    assert decoys >= 5


def test_two_lesions_of_a_slice_share_its_embedding(slices, folder):
    first = slices[0]
    other = np.roll(first.lesion, 20, 1)
    both = first.lesion | other
    pair = [replace(first, lesion=lesion, labelled=both) for lesion in (first.lesion, other)]
    recipe = MedSAMRecipe(replace(SETTINGS, model=folder), pair)
    recipe.reseed(0)
    distinct = [not torch.equal(prompts.masks[0], prompts.masks[1]) for prompts in (recipe.draw_prompts() for _ in range(12))]
    assert sum(distinct) >= 6


def test_the_loss_of_a_perfect_mask_is_small_and_of_an_inverted_one_large():
    target = torch.zeros(1, 1, 64, 64)
    target[..., 20:40, 20:40] = 1
    logits = torch.nn.functional.avg_pool2d(target, 2) * 20 - 10
    assert mask_loss(logits, target) < 0.01
    assert mask_loss(-logits, target) > 2
    assert intersection_over_union(logits, target) == 1 and intersection_over_union(-logits, target) == 0


def test_a_small_finding_weighs_as_much_as_a_large_one():
    small, large = torch.zeros(1, 1, 256, 256), torch.zeros(1, 1, 256, 256)
    small[..., :16, :16] = 1
    large[..., :128, :128] = 1
    nothing = torch.full((1, 1, 128, 128), -4.0)
    assert 0.5 < float(mask_loss(nothing, small) / mask_loss(nothing, large)) < 2


def test_sample_pictures_show_the_outlines(tmp_path, slices, folder):
    recipe = MedSAMRecipe(replace(SETTINGS, model=folder), slices)
    recipe.draw(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
