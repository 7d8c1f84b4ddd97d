from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from monai_diffaug.models.inpainter import load_inpainter
from monai_diffaug.models.registry import ModelSpec, tiny_folder
from monai_diffaug.training.embedded import embed as command
from monai_diffaug.training.embedded.embed import embed

CPU = torch.device("cpu")


def test_an_inpainter_takes_half_the_space_and_loads_with_the_same_weights(tmp_path, random_inpainter) -> None:
    source = tmp_path / "run"
    shutil.copytree(random_inpainter, source)
    (source / "training").mkdir()
    (source / "training/state.ckpt").write_bytes(bytes(1000))
    target = tmp_path / "tiny/inpainter"
    (target / "old").mkdir(parents=True)
    size = embed(source, target)
    assert size == sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    assert (
        not (target / "old").exists() and not (target / "training").exists() and [p.name for p in target.parent.iterdir()] == [target.name]
    )
    weights = sum(f.stat().st_size for f in source.rglob("*.safetensors"))
    assert sum(f.stat().st_size for f in target.rglob("*.safetensors")) < 0.55 * weights
    before, after = (load_inpainter(ModelSpec("inpainter", str(folder)), CPU) for folder in (source, target))
    for part in ("unet", "vae", "text_encoder"):
        values = getattr(after, part).state_dict()
        assert all(torch.equal(value.half().float(), values[name]) for name, value in getattr(before, part).state_dict().items())


def test_a_validator_comes_without_its_vae(tmp_path) -> None:
    source = tmp_path / "run"
    shutil.copytree(tiny_folder("validator"), source)
    shutil.copytree(tiny_folder("inpainter") / "vae", source / "vae")
    embed(source, tmp_path / "validator")
    assert sorted(f.name for f in (tmp_path / "validator").iterdir()) == ["config.json", "model.safetensors"]
    same = (tmp_path / "validator/model.safetensors").read_bytes() == (tiny_folder("validator") / "model.safetensors").read_bytes()
    assert same, "half precision stays what it is"


def test_a_folder_without_weights_leaves_the_embedded_model_alone(tmp_path) -> None:
    (tmp_path / "validator").mkdir()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no weights; give the folder"):
        embed(tmp_path / "empty", tmp_path / "validator")
    assert (tmp_path / "validator").is_dir()


@pytest.mark.parametrize(("recipe", "part"), [("inpaint", "inpainter"), ("semantic-controller", "semantic_controller")])
def test_the_command_finds_the_place_by_the_recipe_of_the_run(tmp_path, monkeypatch, recipe, part) -> None:
    source = tmp_path / "run"
    shutil.copytree(tiny_folder(part), source)
    (source / "training").mkdir()
    (source / "training/settings.json").write_text(json.dumps({"recipe": recipe}))
    monkeypatch.setattr(command, "tiny_folder", lambda name: tmp_path / "tiny" / name)
    monkeypatch.setattr(sys, "argv", ["embed", str(source)])
    command.main()
    assert sorted(f.name for f in (tmp_path / "tiny" / part).iterdir()) == sorted(f.name for f in tiny_folder(part).iterdir())
