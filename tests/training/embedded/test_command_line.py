from __future__ import annotations

import argparse
import importlib
import logging
import sys

import pytest
import torch

from monai_diffaug.training.embedded.command_line import parsed

RECIPES = ("control_bank", "controlnet", "inpaint", "latent_bank", "latent_screen", "medsam", "semantic_controller", "vae")


def test_the_threads_that_are_asked_for_are_set_and_the_log_goes_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up: list[object] = []
    monkeypatch.setattr(torch, "set_num_threads", set_up.append)
    monkeypatch.setattr(logging, "basicConfig", lambda **options: set_up.append(options["level"]))
    monkeypatch.setattr(sys, "argv", ["recipe", "--minutes", "2", "--threads", "3"])
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float)
    assert vars(parsed(parser)) == {"minutes": 2.0, "threads": 3}
    assert set_up == [logging.INFO, 3]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_them(recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [recipe, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"monai_diffaug.training.{recipe}").main()
    assert "--threads THREADS" in capsys.readouterr().out
