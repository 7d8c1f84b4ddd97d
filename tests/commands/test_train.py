from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from monai_diffaug.commands import train
from monai_diffaug.commands.arguments import WrongInputError
from monai_diffaug.commands.cli import _explain
from monai_diffaug.edit.options import InpaintOptions, SemanticController
from monai_diffaug.training.recipe import Recipe
from monai_diffaug.training.run_settings import FineTuneSettings, TrainingInputError


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true")
    train.add_parser(parser.add_subparsers(), common)
    return parser.parse_args(["train", *arguments])


@pytest.fixture
def datalist(tmp_path):
    disc = np.hypot(*(np.indices((64, 64)) - 32)) < 10
    Image.fromarray((60 + 120 * disc + np.random.RandomState(0).randint(0, 30, (64, 64))).astype(np.uint8)).save(tmp_path / "i.png")
    Image.fromarray(disc.astype(np.uint8)).save(tmp_path / "l.png")
    file = tmp_path / "d.json"
    file.write_text(json.dumps({"training": [{"image": "i.png", "label": "l.png"}]}))
    return str(file)


WORDS = ("--modality", "ultrasound", "--anatomy", "breast", "--finding", "benign mass")


@pytest.mark.slow
def test_the_written_folder_is_what_model_takes_and_a_second_call_goes_on(tmp_path, datalist, random_inpainter, capsys):
    from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

    out = tmp_path / "out"
    small = ("--batch-size", "2", "--pictures", "0")
    arguments = ("inpaint", "--data", datalist, "--model", random_inpainter, "--out", str(out), *WORDS, *small)
    chosen = options(*arguments, "--steps", "2")
    assert chosen.run(chosen) == 0
    assert f"model='{out}'" in capsys.readouterr().out
    inpaint = DiffusionLocalInpaint(str(out), num_inference_steps=1)
    assert inpaint.apply(np.random.rand(1, 64, 64), np.ones((1, 64, 64)), "mass", seed=0).record["applied"]
    again = options(*arguments, "--steps", "3", "-q")
    assert again.run(again) == 0
    assert json.loads((out / "training/settings.json").read_text())["data"].startswith("1 lesions, 0 normal slices, ")
    with pytest.raises(TrainingInputError, match="--restart"):
        train.run(options(*arguments, "--steps", "3", "--lora"))


def test_wrong_data_is_exit_code_2_and_one_line(tmp_path, datalist, capsys):
    with pytest.raises(TrainingInputError) as caught:
        train.run(options("inpaint", "--data", datalist, "--out", str(tmp_path / "o")))
    assert _explain(caught.value) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "modality, anatomy, finding missing" in message
    assert not (tmp_path / "o").exists()


def test_a_model_whose_file_cannot_be_read_is_exit_code_2_and_one_line(tmp_path, datalist):
    (tmp_path / "noise.pth").write_bytes(b"no weights")
    chosen = ("medsam", "--data", datalist, "--out", str(tmp_path / "o"), "--model", str(tmp_path / "noise.pth"), *WORDS)
    with pytest.raises(WrongInputError, match=r"--model .*noise\.pth cannot be used: .* is no readable checkpoint"):
        train.run(options(*chosen))
    assert not (tmp_path / "o").exists()


def test_a_device_that_is_not_there_is_named(tmp_path, datalist):
    with pytest.raises(WrongInputError, match="--device xpu:7 cannot be used"):
        train.run(options("inpaint", "--data", datalist, "--out", str(tmp_path / "o"), "--device", "xpu:7", *WORDS))


@pytest.mark.parametrize(
    "extra",
    [
        ("--minutes", "0"),
        ("--minutes", "1", "--steps", "1"),
        ("--rank", "0"),
        ("--plane", "oblique"),
        ("--share", "breast"),
        ("--share", "breast=2"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, extra):
    with pytest.raises(SystemExit):
        options("inpaint", "--data", "d.json", "--out", "o", *extra)


def test_the_help_names_all_recipes_and_what_they_train(capsys):
    with pytest.raises(SystemExit):
        options("--help")
    printed = " ".join(capsys.readouterr().out.split())
    for name, (_, text) in train.RECIPES.items():
        assert f"{name}: {text}" in printed


@pytest.mark.parametrize("recipe", train.RECIPES)
def test_each_recipe_takes_the_common_options(recipe):
    chosen = options(recipe, "--data", "d.json", "--out", "o", "--steps", "3", "--seed", "7", *WORDS)
    settings = train._settings(chosen, "cpu")
    assert (settings.model, settings.steps, settings.minutes, settings.seed, settings.device) == ("tiny", 3, None, 7, "cpu")
    train._recipe_class(recipe).check(settings)


def test_every_setting_can_be_given_on_the_command_line():
    values = ("--minutes", "2", "--lora", "--rank", "4", "--text-encoder", "--batch-size", "3", "--rate", "0.1", "--seed", "5")
    more = ("--precision", "bfloat16", "--pictures", "1", "--tensorboard", "--share", "a=0.25", "--share", "b=0.5", "--no-decoder")
    sources = ("--model", "m", "--inpainter", "i", "--vae", "v", "--encoder", "e", "--validator", "j")
    rest = ("--freeze-encoder", "--texture-weight", "0.1", "--prediction-type", "epsilon", "--student-steps", "2", "--guidance", "2")
    chosen = options("inpaint", "--data", "d.json", "--out", "o", *values, *more, *sources, *rest)
    given, defaults = asdict(train._settings(chosen, "cuda:1")), asdict(FineTuneSettings())
    assert given["shares"] == {"a": 0.25, "b": 0.5} and given["vae"] == "v" and given["decoder"] is False
    assert [name for name in given if given[name] == defaults[name]] == ["steps"]


def test_a_network_for_another_inpainter_starts_fresh_unless_a_model_is_given():
    common = ("controlnet", "--data", "d.json", "--out", "o", "--inpainter", "other")
    assert train._settings(options(*common), "cpu").model == "fresh"
    assert train._settings(options(*common, "--model", "mine"), "cpu").model == "mine"
    assert train._settings(options("validator", *common[1:]), "cpu").model == "tiny"  # it learns from the inpainter's edits alone


@pytest.mark.slow
def test_a_semantic_controller_is_trained_for_the_given_encoder_and_loads(tmp_path, datalist, random_inpainter, capsys):
    from monai_diffaug.transforms.local_inpaint import DiffusionLocalInpaint

    out = tmp_path / "out"
    arguments = ("semantic-controller", "--data", datalist, "--inpainter", random_inpainter, "--out", str(out), *WORDS)
    small = ("--steps", "2", "--batch-size", "2", "--pictures", "0")
    chosen = options(*arguments, *small, "--encoder", "tiny")
    assert chosen.run(chosen) == 0
    assert f"SemanticController('{out}')" in capsys.readouterr().out
    inpaint = DiffusionLocalInpaint(random_inpainter, options=InpaintOptions(control=SemanticController(str(out))), num_inference_steps=1)
    assert inpaint.apply(np.random.rand(1, 64, 64), np.ones((1, 64, 64)), "mass", seed=0).record["applied"]
    assert json.loads((out / "training/settings.json").read_text())["data"].startswith("1 lesions, ")


@pytest.mark.parametrize(
    ("recipe", "option", "message"),
    [
        ("medsam", ("--encoder", "a"), "--encoder has no meaning for medsam"),
        ("medsam", ("--text-encoder",), "--text-encoder has no meaning for medsam"),
        ("controlnet", ("--texture-weight", "0.1"), "--texture-weight has no meaning for controlnet"),
        ("validator", ("--no-decoder",), "--decoder has no meaning for validator"),
        ("semantic-controller", ("--lora",), "--lora has no meaning for semantic-controller"),
        ("inpaint", ("--vae", "a"), "--vae is for --model fresh"),
        ("vae", ("--model", "fresh", "--freeze-encoder"), "--freeze-encoder needs a trained model"),
    ],
)
def test_options_without_a_meaning_are_refused_before_anything_is_read(tmp_path, recipe, option, message):
    with pytest.raises(TrainingInputError, match=message):
        train.run(options(recipe, "--data", str(tmp_path / "none.json"), "--out", str(tmp_path / "o"), *option))


def written_commands() -> list[str]:
    """The commands in the recipes' docstrings and in the model card."""
    texts = [train._recipe_class(name).__doc__ for name in train.RECIPES]
    texts.append((Path(train.__file__).parents[1] / "weights/tiny/README.md").read_text(encoding="utf-8"))
    return re.findall(r"monai-diffaug train (.+)", "\n".join(texts).replace("\\\n", " "))


@pytest.mark.parametrize("command", written_commands())
def test_the_commands_of_the_docstrings_and_of_the_model_card_are_accepted(command):
    chosen = options(*command.split())
    train._recipe_class(chosen.recipe).check(train._settings(chosen, "cpu"))


def test_each_recipe_says_how_its_embedded_model_is_trained():
    fresh = [command.split()[0] for command in written_commands() if "--model fresh" in command]
    embedded = [name for name in train.RECIPES if name != "few-steps"]  # a student has no embedded model
    assert Counter(fresh) == dict.fromkeys(embedded, 2)  # in its docstring and in the model card


def test_every_recipe_can_be_imported():
    from importlib import import_module

    for target, text in train.RECIPES.values():
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name)) and text


def test_the_model_that_a_run_starts_from_is_not_written_over(tmp_path, datalist):
    out = tmp_path / "o"
    out.mkdir()
    with pytest.raises(WrongInputError, match="the folder of --model, which the run would replace"):
        train.run(options("inpaint", "--data", datalist, "--model", f"{out}/", "--out", str(out), *WORDS))


def test_a_restart_leaves_nothing_of_the_run_before(tmp_path, datalist, random_inpainter):
    out = tmp_path / "out"
    small = ("--batch-size", "1", "--pictures", "0", "--no-decoder", "-q")
    arguments = ("inpaint", "--data", datalist, "--model", random_inpainter, "--out", str(out), *WORDS, *small)
    train.run(options(*arguments, "--steps", "2", "--lora"))
    assert (out / "adapter").is_dir()
    train.run(options(*arguments, "--steps", "1", "--restart"))
    assert sorted(p.name for p in (out / "training/samples").iterdir()) == ["step_000000.png", "step_000001.png"]
    assert not (out / "adapter").exists()


def test_a_validator_of_another_kind_is_refused(tmp_path, datalist):
    from monai_diffaug.models.registry import spec_of

    other = nn.Identity()
    source = spec_of("validator", other).source
    with pytest.raises(WrongInputError, match="--model .* cannot be used: .* is no latent validator; give 'tiny'"):
        train.run(options("validator", "--data", datalist, "--model", source, "--out", str(tmp_path / "o"), *WORDS))


class Toy(Recipe):
    """A recipe that fits a line in no time."""

    name, rate = "inpaint", 0.1

    def __init__(self, settings, slices, held_out=()):
        self.slices, self.line = list(slices), nn.Linear(1, 1)
        self.modules = {"line": self.line}

    def reseed(self, seed):
        pass

    def loss(self, progress):
        return self.line.weight.square().sum()

    def draw(self, file):
        Image.new("RGB", (4, 4)).save(file)

    def write(self, folder):
        pass


def write_volume(folder, name, top=4):
    label = np.zeros((24, 22, 8), np.uint8)
    label[top : top + 9, 5:15, 2:6] = 1
    image = np.random.RandomState(top).normal(0, 50, label.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"{name}_label.nii.gz")


def write_list(folder, names, **more):
    rows = [{"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"} for name in names]
    (folder / "list.json").write_text(json.dumps({"training": rows, **more}))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two volumes, and a call that trains a toy on them in ``out``; it returns the steps done since the run began."""
    monkeypatch.setitem(train.RECIPES, "inpaint", (f"{__name__}:Toy", "a line"))
    (tmp_path / "data").mkdir()
    for top, name in enumerate(("a", "b"), start=3):
        write_volume(tmp_path / "data", name, top)
    write_list(tmp_path / "data", ("a", "b"))

    def call(*extra, data=tmp_path / "data/list.json"):
        words = ("--modality", "ct", "--anatomy", "abdomen", "--finding", "cyst")
        train.run(options("inpaint", "--data", str(data), "--out", str(tmp_path / "out"), "--pictures", "0", "-q", *words, *extra))
        return torch.load(tmp_path / "out/training/state.ckpt", weights_only=True)["spent"]["steps"]

    return call


def refused(call, capsys, *extra) -> str:
    """The one line on stderr."""
    with pytest.raises(TrainingInputError) as caught:
        call(*extra)
    assert _explain(caught.value) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "use --restart to begin again, or another --out" in message
    return message


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--window=-100,100",), "window [-160.0, 240.0] (now [-100.0, 100.0]);"),
        (("--plane", "sagittal"), "plane 'axial' (now 'sagittal')"),
        (("--finding", "metastasis"), "words 'ct, abdomen, cyst' (now 'ct, abdomen, metastasis');"),
    ],
)
def test_a_run_does_not_go_on_with_what_makes_other_slices(run, capsys, extra, message):
    assert run("--steps", "2") == 2
    assert message in refused(run, capsys, "--steps", "3", *extra)
    assert run("--steps", "3") == 3, "the refusal has changed the run"
    assert run("--steps", "1", "--restart", *extra) == 1


@pytest.mark.parametrize("change", ["an image more", "an outline mended"])
def test_a_run_does_not_go_on_with_other_data(run, tmp_path, capsys, change):
    assert run("--steps", "2") == 2
    if change == "an image more":
        write_volume(tmp_path / "data", "c")
        write_list(tmp_path / "data", ("a", "b", "c"))
    else:
        file = tmp_path / "data/b_label.nii.gz"
        label = np.asarray(nib.load(file).dataobj)
        nib.save(nib.Nifti1Image(np.roll(label, 1, 0), np.eye(4)), file)
    count = 12 if change == "an image more" else 8
    message = refused(run, capsys, "--steps", "3")
    assert "settings: data '8 lesions, 0 normal slices, " in message and f"(now '{count} lesions, 0 normal slices, " in message


def test_a_run_goes_on_at_another_length_and_place_and_shows_other_things(run, tmp_path):
    pytest.importorskip("tensorboard")
    assert run("--steps", "2") == 2
    write_list(tmp_path / "data", ("b", "a"), validation=[{"image": "a.nii.gz", "label": "a_label.nii.gz"}])
    os.utime(tmp_path / "data/a.nii.gz", (1, 1))
    assert run("--steps", "3", "--batch-size", "3", "--precision", "bfloat16", "--tensorboard", "--device", "cpu:0") == 3
    (tmp_path / "data").rename(tmp_path / "moved")
    assert run("--steps", "4", data=tmp_path / "moved/list.json") == 4
    assert run("--minutes", "0.001", data=tmp_path / "moved/list.json") >= 4


def test_a_run_of_an_older_version_goes_on_and_is_held_to_its_data_from_then_on(run, tmp_path, capsys):
    assert run("--steps", "2") == 2
    file = tmp_path / "out/training/settings.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in before.items() if name not in ("data", "words", "window", "plane")}))
    assert run("--steps", "3", "--window=-100,100") == 3
    assert "window [-100.0, 100.0] (now [-160.0, 240.0])" in refused(run, capsys, "--steps", "4")


def test_other_settings_are_refused_before_the_images_are_read(run, tmp_path, capsys):
    assert run("--steps", "2") == 2
    (tmp_path / "data/a.nii.gz").write_text("no volume")
    assert "rate None (now 0.5)" in refused(run, capsys, "--steps", "3", "--rate", "0.5")
    with pytest.raises(TrainingInputError, match="corrupt or truncated"):
        run("--steps", "3", "--rate", "0.5", "--restart")
