"""The training bundle, run as a user runs it: two steps of each recipe, on three small pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image

from monai_diffaug.bundles.folders import bundle_folder, copy_bundle
from monai_diffaug.commands.train import RECIPES, _recipe_class
from monai_diffaug.edit.options import ControlNet, InpaintOptions, SemanticController
from monai_diffaug.models.latent_screen import load_latent_screen
from monai_diffaug.models.registry import ModelSpec
from monai_diffaug.training import encoded_ring
from monai_diffaug.training.recipe import OF_SOME_RECIPES
from monai_diffaug.training.recipes import latent_screen_recipe
from monai_diffaug.training.recipes.vae_recipe import load_vae
from monai_diffaug.transforms.latent_validate import LatentValidate
from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint
from monai_diffaug.transforms.medsam_mask import MedSAMMask

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"steps": 2, "batch_size": 2, "pictures": 0, "device": "cpu"}
NAMES = tuple(name.replace("-", "_") for name in RECIPES)
IMAGE, MASK = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 64, 64)
MASK[:, 20:40, 20:40] = 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle("fine_tuning", tmp_path_factory.mktemp("work") / "bundle")


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    rng, rows = np.random.RandomState(0), []
    for k in range(3):
        disc = np.hypot(*(np.indices((72, 72)) - 30 - 4 * k)) < 9
        Image.fromarray(np.clip(rng.normal(90, 10, (72, 72)) + 110 * disc, 0, 255).astype(np.uint8)).save(folder / f"i{k}.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / f"l{k}.png")
        rows.append({"image": f"i{k}.png", "label": f"l{k}.png"})
    (folder / "datalist.json").write_text(json.dumps({"training": rows[:2], "validation": rows[2:]}))
    return str(folder / "datalist.json")


WORDS = {"modality": "ultrasound", "anatomy": "breast", "finding": "benign mass"}


def overrides_for(recipe: str, folder: Path, datalist: str, inpainter: str, **more: Any) -> dict[str, Any]:
    source = {"inpaint": "model", **dict.fromkeys(("controlnet", "semantic_controller", "latent_screen"), "inpainter")}.get(recipe)
    sources = {} if source is None else {source: inpainter}
    return {**SMALL, **WORDS, "bundle_root": str(folder), "data": datalist, **sources, **more}


def run_here(folder: Path, configs: list[str], overrides: dict[str, Any]) -> ConfigWorkflow:
    workflow = ConfigWorkflow([str(folder / "configs" / name) for name in configs], logging_file=False, **overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def run_bundle(launcher: list[str], folder: Path, configs: list[str], overrides: dict[str, Any]) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "CUDA_VISIBLE_DEVICES": ""}
    files = [f"configs/{name}" for name in configs]
    config_file = files[0] if len(files) == 1 else str(files)
    texts = [text for name, value in overrides.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, *launcher, "-m", "monai.bundle", "run", "--config_file", config_file, *texts]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def works(recipe: str, folder: str, inpainter: str) -> bool:
    """The transform, or the loader of the model, takes the folder that the recipe wrote, and answers."""
    if recipe == "validator":
        return 0 <= LatentValidate(folder)(IMAGE, MASK).score <= 1
    if recipe == "vae":
        return load_vae(folder).config.scaling_factor > 0
    if recipe == "latent_screen":
        return tuple(load_latent_screen(ModelSpec("latent_screen", folder)).predict(torch.zeros(1, 4, 16, 16)).shape) == (1, 1, 16, 16)
    if recipe == "medsam":
        return tuple(MedSAMMask(box=(20, 20, 40, 40), model=folder)(IMAGE).shape) == (1, 64, 64)
    control = {"controlnet": ControlNet, "semantic_controller": SemanticController}.get(recipe)
    model, options = (folder, None) if control is None else (inpainter, InpaintOptions(control=control(folder)))
    return bool(DiffusionLocalInpaint(model, num_inference_steps=1, options=options).apply(IMAGE, MASK, "mass", seed=0).record["applied"])


@pytest.fixture(autouse=True)
def few_encoded_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_ring, "FIRST", 4)
    monkeypatch.setattr(latent_screen_recipe, "JUDGED_FIRST", 4)


@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.slow
def test_each_recipe_trains_and_writes_what_its_transform_takes(
    recipe: str, bundle: Path, datalist: str, random_inpainter: str, tmp_path: Path
) -> None:
    run_here(bundle, [f"train_{recipe}.yaml"], overrides_for(recipe, bundle, datalist, random_inpainter, output_dir=str(tmp_path)))
    assert torch.load(tmp_path / "training/state.ckpt", weights_only=True)["spent"]["steps"] == 2
    assert works(recipe, str(tmp_path), random_inpainter)


@pytest.mark.slow
def test_settings_are_overridden_from_the_command_line_and_the_run_goes_on(bundle: Path, datalist: str, random_inpainter: str) -> None:
    overrides = overrides_for("inpaint", bundle, datalist, random_inpainter, lora=True, rank=2, seed=5, rate=0.001)
    overrides.pop("bundle_root")
    run_bundle([], bundle, ["train_inpaint.yaml"], overrides)
    settings = json.loads((bundle / "models/inpaint/training/settings.json").read_text())
    expected = {"lora": True, "rank": 2, "seed": 5, "rate": 0.001, "steps": 2, "minutes": None, "model": random_inpainter}
    assert {name: settings[name] for name in expected} == expected
    assert (bundle / "models/inpaint/adapter").is_dir()
    run_here(bundle, ["train_inpaint.yaml"], {**overrides, "bundle_root": str(bundle), "steps": 3})
    assert torch.load(bundle / "models/inpaint/training/state.ckpt", weights_only=True)["spent"]["steps"] == 3


@pytest.mark.slow
def test_two_processes_train_one_model_on_different_crops(bundle: Path, datalist: str, random_inpainter: str, tmp_path: Path) -> None:
    (bundle / "configs/tell.yaml").write_text(
        "run:\n"
        "  - $fine_tune(@recipe, @settings, @output_dir)\n"
        "  - $print(' '.join(map(str, ['rank', dist.get_rank(), dist.get_world_size(), @recipe.generator.initial_seed(), "
        "sum(p.double().abs().sum().item() for p in @recipe.model.unet.parameters()), @recipe.ring.batch(4)[0][0].sum().item()]))"
        " + os.linesep, end='')\n"
    )
    overrides = overrides_for("inpaint", bundle, datalist, random_inpainter, output_dir=str(tmp_path), batch_size=1)
    overrides.pop("device")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    printed = run_bundle(launcher, bundle, ["train_inpaint.yaml", "multi_gpu.yaml", "tell.yaml"], overrides)
    lines = sorted(re.findall(r"rank (\d) (\d) (\d+) ([\d.]+) ([-\d.e]+)", printed))
    assert [(rank, size) for rank, size, *_ in lines] == [("0", "2"), ("1", "2")], printed[-2000:]
    assert lines[0][2] != lines[1][2] and lines[0][4] != lines[1][4], "both processes draw the same crops"
    assert lines[0][3] == lines[1][3], "the processes' weights differ: gradients were not shared"
    assert works("inpaint", str(tmp_path), random_inpainter)


def test_the_recipes_differ_in_nothing_but_their_options() -> None:
    """The common part is repeated in each file: it must not drift apart."""
    configs = {name: ConfigParser.load_config_file(bundle_folder("fine_tuning") / f"configs/train_{name}.yaml") for name in NAMES}
    different = {"output_dir", "model", "rank", "settings", "recipe", *OF_SOME_RECIPES}
    common = [{id_: value for id_, value in config.items() if id_ not in different} for config in configs.values()]
    assert all(part == common[0] for part in common)
    for name, config in configs.items():
        assert config["output_dir"].endswith(f"/models/{name}'")
        settings = {key: value for key, value in config["settings"].items() if key != "_target_"}
        assert all(value == f"@{key}" for key, value in settings.items()) and set(settings) <= set(config)
        module, _, kind = RECIPES[name.replace("_", "-")][0].partition(":")
        assert config["recipe"]["_target_"] == f"{module}.{kind}"
        assert {key for key in settings if key in OF_SOME_RECIPES} == set(_recipe_class(name.replace("_", "-")).options)


def test_every_option_in_the_table_of_the_readme_exists_and_none_is_missing() -> None:
    folder = bundle_folder("fine_tuning")
    rows = [line.split("|")[1] for line in (folder / "docs/README.md").read_text().splitlines() if line.startswith("| `")]
    options = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    ids = {id_ for path in folder.glob("configs/train_*.yaml") for id_ in ConfigParser.load_config_file(path)}
    parts = {"imports", "bundle_root", "settings", "words", "train", "validate", "recipe", "run"}
    assert options == ids - parts
