from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("MedSAMMaskd", "TextPromptd", "DiffusionLocalInpaintd", "LatentValidated", "SoftMaskd", "MedSAMMask", "DiffusionLocalInpaint")


def run_python(code: str) -> str:
    """A fresh process, since the order of imports is what is tested."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_short_names_and_full_paths_work_once_the_config_imports_the_package() -> None:
    code = f"""
from monai.bundle import ConfigParser
names = {NAMES!r}
parser = ConfigParser({{
    "imports": ["$import monai_diffaug"],
    "short": {{"_target_": "DiffusionLocalInpaintd", "keys": "image", "guidance_scale": 2.5}},
    "full": {{"_target_": "monai_diffaug.transforms.local_inpaintd.DiffusionLocalInpaintd", "keys": "image"}},
    "package": {{"_target_": "monai_diffaug.DiffusionLocalInpaintd", "keys": "image"}},
}})
made = [parser.get_parsed_content(id) for id in ("short", "full", "package")]
assert len({{type(each) for each in made}}) == 1, made
assert made[0].inpaint.settings.guidance_scale == 2.5
for name in names:
    print(name, parser.locator.get_component_module_name(name))
"""
    modules = dict(line.split(" ", 1) for line in run_python(code).splitlines())
    assert set(modules) == set(NAMES)
    # a list of modules would make MONAI warn and take the first
    assert all(module.startswith("monai_diffaug.transforms.") for module in modules.values()), modules


@pytest.mark.parametrize("order", [("monai.bundle", "monai_diffaug"), ("monai_diffaug", "monai.bundle")])
@pytest.mark.slow
def test_short_names_are_known_whichever_package_is_imported_first(order: tuple[str, str]) -> None:
    code = f"""
import {order[0]}, {order[1]}
from monai.bundle import ConfigParser
parser = ConfigParser({{
    "short": {{"_target_": "SoftMaskd", "keys": "mask"}},
    "package": {{"_target_": "monai_diffaug.transforms.SoftMaskd", "keys": "mask"}},
    "group": {{"_target_": "InpaintOptions", "noise": {{"_target_": "Noise", "rho": 0.5}}}},
}})
print(type(parser.get_parsed_content("short")) is type(parser.get_parsed_content("package")))
print(parser.get_parsed_content("group").noise.rho, monai_diffaug.presets.diffaug.__name__)
"""
    assert run_python(code).split() == ["True", "0.5", "diffaug"]


@pytest.mark.slow
def test_short_names_are_unique_in_monai_and_this_package_but_for_one() -> None:
    code = """
import inspect, monai_diffaug
from monai.bundle import ConfigParser
locator = ConfigParser({}).locator
for name in monai_diffaug.__all__:
    if inspect.isclass(getattr(monai_diffaug, name)) and not isinstance(locator.get_component_module_name(name), str):
        print(name, *locator.get_component_module_name(name))
"""
    assert run_python(code).split() == ["ControlNet", "monai.networks.nets.controlnet", "monai_diffaug.edit.options"]
