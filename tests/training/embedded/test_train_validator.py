"""What the validator's training draws, and that a step of it learns."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import monai_diffaug.training.embedded.train_validator as recipe
from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.registry import ModelSpec, spec_of, tiny_folder
from monai_diffaug.models.validator import TINY_CONFIG, LatentSegmenter, load_validator
from monai_diffaug.training.embedded.datasets import data_root
from monai_diffaug.training.embedded.train_validator import (
    MIN_SIDE_PX,
    LesionCrops,
    LesionCropSampler,
    blurred,
    lesion_square,
    soft_dice_and_entropy,
    start,
    training_loss,
)

needs_data = pytest.mark.skipif(data_root() is None, reason="the training images are not here; set MONAI_DIFFAUG_DATA")
SMALL = {**TINY_CONFIG, "size_px": 64, "condition_channels": [8, 16], "unet_channels": [16, 32], "condition_out_channels": 8}


def test_the_square_is_centred_and_not_smaller_than_the_least_side():
    mask = np.zeros((256, 256), bool)
    mask[100:110, 50:90] = True
    centre, side, extent = lesion_square(mask, 2.0)
    assert centre.tolist() == [104.5, 69.5] and side == 80 and extent == 40
    mask[:] = False
    mask[5:8, 5:8] = True
    assert lesion_square(mask, 2.0)[1] == MIN_SIDE_PX


def test_blurring_keeps_the_mean_of_a_flat_image_and_lowers_the_contrast_of_a_point():
    flat, point = torch.full((1, 3, 16, 16), 0.3), torch.zeros(1, 1, 17, 17)
    point[..., 8, 8] = 1
    assert torch.allclose(blurred(flat, 1.5), flat, atol=1e-6)
    assert float(blurred(point, 1.0).max()) < 0.2 and float(blurred(point, 1.0).sum()) == pytest.approx(1, abs=1e-4)


def test_the_mask_loss_is_small_only_for_the_right_mask():
    target = torch.zeros(2, 1, 16, 16)
    target[..., 4:10, 4:10] = 1
    right, empty = target * 2 - 1, torch.full_like(target, -1.0)
    assert float(soft_dice_and_entropy(right, target)) < 0.15
    assert float(soft_dice_and_entropy(empty, target)) > 1
    assert float(soft_dice_and_entropy(empty, torch.zeros_like(target))) < 0.5


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_a_few_steps_on_one_batch_lower_the_loss(prediction_type):
    torch.manual_seed(0)
    segmenter = LatentSegmenter({**SMALL, "prediction_type": prediction_type})
    masks = torch.zeros(2, 1, 64, 64)
    masks[..., 20:44, 16:48] = 1
    crops = LesionCrops(masks.expand(-1, 3, -1, -1) * 1.0 - 0.5, masks)
    z0 = (F.avg_pool2d(masks, 4) * 2 - 1).expand(-1, 4, -1, -1)
    probe = (torch.zeros(1, 4, 3, 3), torch.zeros(1))
    probe[0][:, :, 1, 1] = 0.25
    optimizer = torch.optim.Adam(segmenter.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        loss = training_loss(segmenter, z0, crops, probe, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]


@needs_data
def test_lesions_come_with_their_mask_and_normal_tissue_with_an_empty_one():
    sources = ("breast_ultrasound",)
    lesions = LesionCropSampler("validation", 0, sources, normal_share=0.0).draw(4)
    normal = LesionCropSampler("validation", 0, sources, normal_share=1.0).draw(4)
    assert lesions.images.shape == (4, 3, 128, 128) and lesions.masks.shape == (4, 1, 128, 128)
    assert float(lesions.images.min()) >= -1 and float(lesions.images.max()) <= 1
    assert bool((lesions.masks.sum((1, 2, 3)) > 50).all()) and not normal.masks.any()


@needs_data
def test_the_same_seed_draws_the_same_crops():
    first, second = (LesionCropSampler("validation", 3, ("breast_ultrasound",)).draw(3) for _ in range(2))
    assert torch.equal(first.images, second.images) and torch.equal(first.masks, second.masks)


@needs_data
def test_the_recipe_draws_no_crop_of_a_data_set_that_is_left_out(tmp_path, monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    class Recorded:
        def __init__(self, split, seed, sources, breast_share):
            seen.append(sources)
            raise Stop

    monkeypatch.setattr(recipe, "LesionCropSampler", Recorded)
    with pytest.raises(Stop):
        recipe.train(tmp_path, tiny_folder("inpainter") / "vae", 1.0, left_out=["breast_ultrasound"])
    assert "breast_ultrasound" not in seen[0] and "spine_mri" in seen[0]


@needs_data
def test_breast_ultrasound_has_its_share_of_the_draws_beside_its_turn_among_all_data_sets():
    def share_of_breast(breast_share):
        sampler = LesionCropSampler("validation", 0, ("breast_ultrasound", "spleen_ct"), breast_share=breast_share)
        return np.mean([sampler._pick(sampler.found).source.name == "breast_ultrasound" for _ in range(400)])

    assert share_of_breast(1.0) == 1
    assert share_of_breast(0.0) == pytest.approx(1 / 2, abs=0.08) and share_of_breast(0.6) == pytest.approx(0.8, abs=0.08)


def test_a_run_starts_afresh_or_from_all_weights_of_a_model_and_its_vae():
    fresh, no_vae = start(None, "epsilon")
    assert fresh.prediction_type == "epsilon" and no_vae is None
    embedded, vae = start("tiny", "epsilon")
    stored = load_validator(ModelSpec("validator"))
    assert embedded.prediction_type == "sample" and embedded.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in embedded.parameters())
    assert all(torch.equal(value, stored.segmenter.state_dict()[name]) for name, value in embedded.state_dict().items())
    assert all(torch.equal(value, stored.vae.state_dict()[name]) for name, value in vae.state_dict().items())


def test_a_run_starts_from_no_other_kind_of_model(tmp_path):
    with pytest.raises(ModelSourceError, match="no validator at"):
        start(str(tmp_path / "none"), "sample")
    other = torch.nn.Identity()
    with pytest.raises(ValueError, match="no latent validator; give 'tiny'"):
        start(spec_of("validator", other).source, "sample")
    with pytest.raises(ValueError, match="fresh weights need a VAE"):
        recipe.train(tmp_path, None, 1.0)


@needs_data
def test_a_given_model_is_trained_on_its_own_vae_at_the_given_rate(tmp_path, monkeypatch):
    ticks = iter([0.0, 0.5, 1.0])
    monkeypatch.setattr(recipe.Clock, "progress", lambda self: next(ticks))
    seen = []
    monkeypatch.setattr(recipe, "fit_probe", lambda vae, sampler: seen.append(vae) or (torch.zeros(1, 4, 3, 3), torch.zeros(1)))
    monkeypatch.setattr(recipe, "names_without", lambda left_out: ("breast_ultrasound",))
    before = start("tiny", "sample")[0].state_dict()
    trained = recipe.train(tmp_path, None, 1.0, 2, model="tiny", breast_share=0.3, peak_rate=1e-5).state_dict()
    assert not any(p.requires_grad for p in seen[0].parameters()) and (tmp_path / "validator" / "model.safetensors").is_file()
    moved = max(float((trained[name] - value).abs().max()) for name, value in before.items() if value.is_floating_point())
    assert 0 < moved < 1e-4


def run_command(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["validator", *map(str, options)])
    recipe.main()


def test_the_options_reach_the_run(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(recipe, "train", lambda *args, **options: given.append((args, options)))
    run_command(monkeypatch, "--out", tmp_path, "--minutes", 2, "--model", "tiny", "--breast-share", 0.8, "--rate", 2e-4)
    run_command(monkeypatch, "--out", tmp_path, "--without", "spine_mri")
    run_command(monkeypatch, "--out", tmp_path, "--model", "tiny", "--vae", tmp_path / "vae")
    (first, options), (second, defaults), (third, _) = given
    assert first[:3] == (tmp_path, None, 2) and options == {"left_out": (), "model": "tiny", "breast_share": 0.8, "peak_rate": 2e-4}
    assert second[1] == recipe.FRESH_VAE and third[1] == tmp_path / "vae"
    assert defaults == {"left_out": ["spine_mri"], "model": None, "breast_share": recipe.BREAST_SHARE, "peak_rate": recipe.PEAK_RATE}


def test_a_model_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_command(monkeypatch, "--out", tmp_path, "--model", tmp_path / "none")
    assert f"error: no validator at {tmp_path}/none" in capsys.readouterr().err
