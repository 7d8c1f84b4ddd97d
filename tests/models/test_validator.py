"""The latent validator: schedule, both prediction types, files, and segmenters that replace it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from monai_diffaug.errors import ModelSourceError
from monai_diffaug.models.registry import ModelSpec, spec_of, tiny_folder
from monai_diffaug.models.validator import (
    TINY_CONFIG,
    LatentSegmenter,
    LatentValidator,
    SegmenterValidator,
    contrast_views,
    cumulative_alphas,
    load_validator,
    save_validator,
)
from monai_diffaug.sampling.seeding import slice_generators

SMALL = {**TINY_CONFIG, "size_px": 64, "condition_channels": [8, 16], "unet_channels": [16, 32], "condition_out_channels": 8}


def small_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("validator")
    save_validator(LatentSegmenter(SMALL), path)
    small_vae().save_pretrained(path / "vae")
    return path


def test_the_default_schedule_ends_in_pure_noise_and_the_epsilon_schedule_does_not():
    assert cumulative_alphas(True)[-1] == 0
    assert 0 < cumulative_alphas(False)[-1] < 0.01
    assert torch.allclose(cumulative_alphas(True)[0], cumulative_alphas(False)[0])
    assert bool((cumulative_alphas(True).diff() < 0).all())


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_a_perfect_prediction_returns_the_clean_latents(prediction_type):
    segmenter = LatentSegmenter({**SMALL, "prediction_type": prediction_type})
    z0, noise = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    timesteps = torch.tensor([999, 400])
    z_t = segmenter.add_noise(z0, noise, timesteps)
    perfect = z0 if prediction_type == "sample" else noise
    assert torch.allclose(segmenter.z0_of(perfect, z_t, timesteps), z0, atol=1e-4)


def test_z0_of_epsilon_equals_the_predicted_original_sample_of_diffusers():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    theirs.set_timesteps(1000)
    ours = LatentSegmenter({**SMALL, "prediction_type": "epsilon"})
    z0, noise, wrong = torch.randn(3, 1, 4, 8, 8)
    for timestep in (999, 500, 3):
        at = torch.tensor([timestep])
        z_t = ours.add_noise(z0, noise, at)
        assert torch.allclose(z_t, theirs.add_noise(z0, noise, at), atol=1e-5)
        expected = theirs.step(wrong, timestep, z_t).pred_original_sample  # from an imperfect prediction
        assert torch.allclose(ours.z0_of(wrong, z_t, at), expected, rtol=1e-3, atol=1e-3)


def test_an_error_of_epsilon_is_amplified_at_the_last_step_and_one_of_x0_is_not():
    last, error = torch.tensor([999]), torch.full((1, 4, 8, 8), 0.01)
    z_t = torch.randn(1, 4, 8, 8)
    grown = {}
    for kind in ("sample", "epsilon"):
        segmenter = LatentSegmenter({**SMALL, "prediction_type": kind})
        moved = segmenter.z0_of(z_t + error, z_t, last) - segmenter.z0_of(z_t, z_t, last)
        grown[kind] = float(moved.abs().mean()) / 0.01
    assert grown["sample"] == pytest.approx(1, abs=1e-3) and grown["epsilon"] == pytest.approx(14.6, abs=0.1)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_a_prediction_is_the_decoded_z0_of_one_call_at_the_last_step_on_pure_noise(prediction_type):
    torch.manual_seed(0)
    validator = LatentValidator(LatentSegmenter({**SMALL, "prediction_type": prediction_type}), small_vae())
    calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    hook = validator.segmenter.register_forward_hook(lambda module, args, answer: calls.append((args[1], args[2], answer)))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    probabilities = validator.predict(images, slice_generators(7, [0, 1]))
    hook.remove()
    ((z_t, timesteps, answer),) = calls
    assert timesteps.tolist() == [999, 999]
    assert torch.equal(z_t, torch.stack([torch.randn(4, 16, 16, generator=g) for g in slice_generators(7, [0, 1])]))
    alphas = cumulative_alphas(prediction_type == "sample")[999]
    z0hat = answer if prediction_type == "sample" else (z_t - (1 - alphas).sqrt() * answer) / alphas.sqrt()
    with torch.no_grad():
        decoded = validator.vae.decode(z0hat / 0.5).sample.mean(1, keepdim=True)
    assert torch.allclose(probabilities, ((decoded + 1) / 2).clamp(0, 1), atol=1e-5)
    assert torch.equal(probabilities > 0.5, decoded > 0)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_the_step_is_float32_with_a_half_precision_spec_and_inside_autocast(tmp_path, prediction_type):
    torch.manual_seed(0)
    save_validator(LatentSegmenter({**SMALL, "prediction_type": prediction_type}), tmp_path)
    small_vae().save_pretrained(tmp_path / "vae")
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    full, half = (load_validator(ModelSpec("validator", str(tmp_path), dtype)) for dtype in ("float32", "bfloat16"))
    expected = full.predict(images, slice_generators(7, [0]))
    assert {p.dtype for p in (*half.segmenter.parameters(), *half.vae.parameters())} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = half.predict(images, slice_generators(7, [0]))
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_the_embedded_size_stays_below_two_and_a_half_million_parameters():
    assert sum(p.numel() for p in LatentSegmenter().parameters()) <= 2_500_000


def test_a_saved_validator_is_frozen_and_does_not_depend_on_the_batch(folder):
    validator = load_validator(ModelSpec("validator", str(folder)))
    assert isinstance(validator, LatentValidator) and validator.size_px == 64
    assert not any(p.requires_grad for p in (*validator.segmenter.parameters(), *validator.vae.parameters()))
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    together = validator.predict(images, slice_generators(7, [0, 1, 2]))
    alone = validator.predict(images[1:2], slice_generators(7, [1]))
    assert together.shape == (3, 1, 64, 64) and float(together.min()) >= 0 and float(together.max()) <= 1
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert not together.requires_grad


def test_image_sizes_off_the_latents_grid_are_refused(folder):
    validator = load_validator(ModelSpec("validator", str(folder)))
    with pytest.raises(ValueError, match="multiples of 8"):
        validator.predict(torch.zeros(1, 3, 60, 64), slice_generators(0, [0]))
    with pytest.raises(ValueError, match="as many generators"):
        validator.predict(torch.zeros(2, 3, 64, 64), slice_generators(0, [0]))


def test_the_error_of_a_missing_folder_or_file_says_what_to_do(tmp_path, folder):
    with pytest.raises(ModelSourceError, match="model='tiny'"):
        load_validator(ModelSpec("validator", str(tmp_path / "none")))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelSourceError, match=r"model\.safetensors is missing"):
        load_validator(ModelSpec("validator", str(tmp_path)))


def test_corrupt_files_and_other_architectures_are_refused(tmp_path, folder):
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="truncated"):
        load_validator(ModelSpec("validator", str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "unet_channels": [16, 48]}))
    with pytest.raises(ValueError, match="does not fit"):
        load_validator(ModelSpec("validator", str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no configuration"):
        load_validator(ModelSpec("validator", str(tmp_path)))


def test_an_encoder_off_the_latents_grid_and_an_unknown_prediction_are_refused():
    with pytest.raises(ValueError, match="reduces by 8"):
        LatentSegmenter({**SMALL, "condition_unshuffle": 4})
    with pytest.raises(ValueError, match="prediction_type"):
        LatentSegmenter({**SMALL, "prediction_type": "velocity"})


@pytest.mark.parametrize("classes", [1, 3])
def test_a_network_with_logits_is_copied_and_validates(classes):
    network = nn.Conv2d(1, classes, 3, padding=1).train()
    validator = load_validator(spec_of("validator", network))
    probabilities = validator.predict(torch.rand(2, 3, 32, 32), slice_generators(0, [0, 1]))
    assert probabilities.shape == (2, 1, 32, 32)
    grey = torch.rand(1, 3, 8, 8)
    logits = network(grey.mean(1, keepdim=True))
    expected = logits.sigmoid() if classes == 1 else logits.softmax(1)[:, 1:].sum(1, keepdim=True)
    assert torch.allclose(validator.predict(grey, slice_generators(0, [0])), expected, atol=1e-6)
    assert network.training and network.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_gets_images_in_its_precision(dtype):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 1, 3, padding=1).to(dtype)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    probabilities = load_validator(spec_of("validator", network)).predict(images, [])
    assert probabilities.dtype == torch.float32
    assert torch.equal(probabilities, network(images.to(dtype)).float().sigmoid()) and network.weight.dtype == dtype


def test_a_callable_must_return_probabilities():
    ok = SegmenterValidator(lambda images: images[:, :1].sigmoid())
    assert ok.predict(torch.randn(1, 3, 8, 8), []).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="probabilities"):
        SegmenterValidator(lambda images: images[:, :1] + 5).predict(torch.zeros(1, 3, 8, 8), [])
    with pytest.raises(ValueError, match=r"\(B, K, h, w\)"):
        SegmenterValidator(lambda images: images[:, 0]).predict(torch.zeros(1, 3, 8, 8), [])


def test_an_object_that_cannot_be_called_is_refused():
    with pytest.raises(ValueError, match="callable"):
        load_validator(spec_of("validator", 3.5))


@pytest.mark.skipif(
    not all((tiny_folder(p) / "config.json").is_file() for p in ("validator", "inpainter/vae")),
    reason="the embedded validator or its VAE is not there yet",
)
def test_the_embedded_validator_fits_its_size_and_runs():
    folder = tiny_folder("validator")
    assert (folder / "model.safetensors").stat().st_size <= 5_000_000
    validator = load_validator(ModelSpec("validator"))
    assert validator.predict(torch.zeros(1, 3, 128, 128), slice_generators(0, [0])).shape == (1, 1, 128, 128)


def test_a_prediction_does_not_depend_on_torchs_default_dtype(folder):
    validator = load_validator(ModelSpec("validator", str(folder)))
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = validator.predict(images, slice_generators(5, [0]))
    torch.set_default_dtype(torch.float64)
    try:
        got = validator.predict(images, slice_generators(5, [0]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, expected)


def test_contrast_views_show_a_faint_lesion_next_to_bone_in_any_brightness():
    brain = torch.full((1, 3, 32, 32), -0.7)
    brain[..., :8], brain[..., 24:] = -1.0, 1.0  # background and bone
    brain[..., 12:16, 12:16] = -0.6
    dim, bright = contrast_views(brain, (2.0, 8.0)), contrast_views(torch.where(brain.abs() < 1, brain + 0.4, brain), (2.0, 8.0))
    assert dim.shape == (1, 2, 32, 32) and float((dim - bright)[..., 8:24].abs().max()) < 1e-5
    assert float(dim[0, 0, 13, 13]) > 0.9 and float(dim[0, 0, 4, 12].abs()) < 1e-5 and float(dim[0, 0, 13, 30]) > 0.99


def test_contrast_views_of_nothing_are_finite():
    black = torch.full((2, 3, 16, 16), -1.0)
    assert bool(contrast_views(black, (2.0,)).isfinite().all())


def test_a_config_without_contrast_views_makes_the_network_that_it_made():
    older = {name: value for name, value in SMALL.items() if name != "contrast_views"}
    assert LatentSegmenter(older).condition.conv_in.in_channels == 12
    assert LatentSegmenter(SMALL).condition.conv_in.in_channels == 20
