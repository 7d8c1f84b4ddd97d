"""Faults of letter C, model folders: each broken one ends in one line, and a class name outside its slot builds nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from monai_diffaug import LatentValidate, Validator
from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec

Break = Callable[[Path], None]


def with_values(file: str, **values: object) -> Break:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **values}))

    return change


def with_text(file: str, text: str) -> Break:
    return lambda folder: (folder / file).write_text(text) and None


SCHEDULER, UNET, VAE = "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"
TEXT, TOKENIZER = "text_encoder/config.json", "tokenizer/tokenizer_config.json"
BROKEN = {
    "scheduler, no JSON": (with_text(SCHEDULER, "{"), "scheduler_config.json is no JSON"),
    "scheduler, a list": (with_text(SCHEDULER, "[1]"), "must hold a JSON object, it holds a list"),
    "scheduler, a network": (with_values(SCHEDULER, _class_name="UNet2DConditionModel"), "which is no scheduler here; use"),
    "scheduler, a pipeline": (with_values(SCHEDULER, _class_name="DiffusionPipeline"), "which is no scheduler here; use"),
    "scheduler, no text": (with_values(SCHEDULER, _class_name=3), "names 3, which is no scheduler"),
    "scheduler, unknown value": (with_values(SCHEDULER, beta_schedule="none"), "is no configuration of a"),
    "scheduler, wrong type": (with_values(SCHEDULER, num_train_timesteps="x"), "is no configuration of a"),
    "unet, a list": (with_text(UNET, "[]"), "must hold a JSON object"),
    "unet, another class": (with_values(UNET, _class_name="UNet3DConditionModel"), "which is no unet here"),
    "unet, no side": (with_values(UNET, sample_size=None), "sample_size must be the side of a square in latent pixels, got None"),
    "unet, oblong": (with_values(UNET, sample_size=[16, 32]), r"got \[16, 32\]"),
    "unet, unknown block": (with_values(UNET, down_block_types=["None"] * 2), "cannot be loaded"),
    "unet, damaged weights": (with_text("unet/diffusion_pytorch_model.safetensors", "x"), "cannot be loaded"),
    "vae, fewer blocks": (with_values(VAE, block_out_channels=[16]), "cannot be loaded"),
    "vae, no scale": (with_values(VAE, scaling_factor=None), "scaling_factor must be a number, got None"),
    "text encoder, another width": (with_values(TEXT, hidden_size=100), "cannot be loaded"),
    "text encoder, wrong type": (with_values(TEXT, hidden_size="x"), "cannot be loaded"),
    "text encoder, unknown activation": (with_values(TEXT, hidden_act="none"), "cannot be loaded"),
    "text encoder, kernels from elsewhere": (with_values(TEXT, attn_implementation="org/none"), "may fetch and run code"),
    "tokenizer, no JSON": (with_text(TOKENIZER, "["), "tokenizer_config.json is no JSON"),
    "tokenizer, another class": (with_values(TOKENIZER, tokenizer_class="T5Tokenizer"), "which is no tokenizer here"),
    "tokenizer, wrong length": (with_values(TOKENIZER, model_max_length="x"), "model_max_length must be a whole number"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_ends_in_one_line(tmp_path, random_inpainter, capfd, name) -> None:
    change, reason = BROKEN[name]
    folder = tmp_path / "model"
    shutil.copytree(random_inpainter, folder)
    change(folder)
    with pytest.raises(ValueError, match=reason) as raised:
        load_inpainter(ModelSpec("inpainter", str(folder)), torch.device("cpu"))
    assert "\n" not in str(raised.value)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_a_pair_of_equal_sides_is_the_side(tmp_path, random_inpainter) -> None:
    side = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu")).size_px
    shutil.copytree(random_inpainter, tmp_path / "model")
    with_values(UNET, sample_size=[16, 16])(tmp_path / "model")
    assert load_inpainter(ModelSpec("inpainter", str(tmp_path / "model")), torch.device("cpu")).size_px == side == 64


def test_a_unet_with_an_embedded_guidance_scale_is_refused(random_inpainter) -> None:
    model = load_inpainter(ModelSpec("inpainter", random_inpainter), torch.device("cpu"))
    model.unet.register_to_config(time_cond_proj_dim=32)
    with pytest.raises(ValueError, match="time_cond_proj_dim"):
        model.__post_init__()


def test_the_config_of_a_bundle_is_not_run_without_opt_in(tmp_path) -> None:
    folder, mark = tmp_path / "seg", tmp_path / "ran"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs/metadata.json").write_text("{}")
    config = {"network_def": f"$__import__('pathlib').Path({str(mark)!r}).touch()"}
    (folder / "configs/inference.json").write_text(json.dumps(config))
    image, mask = torch.rand(1, 64, 64), torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    with pytest.raises(ValueError, match=r"is a MONAI Bundle: .* options=Validator\(trust_config=True\)"):
        LatentValidate(str(folder))(image, mask)
    assert not mark.exists()
    with pytest.raises(ValueError, match="network_def in .* is a NoneType"):
        LatentValidate(str(folder), options=Validator(trust_config=True))(image, mask)
    assert mark.exists()
