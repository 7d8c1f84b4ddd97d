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


def test_short_names_and_full_paths_work_once_the_config_imports_the_package() -> None:
    code = f"""
from monai.bundle import ConfigParser
names = {NAMES!r}
options = {{"keys": "image"}}
parser = ConfigParser({{
    "imports": ["$import monai_diffaug"],
    "short": {{"_target_": "DiffusionLocalInpaintd", "keys": "image", "guidance_scale": 2.5}},
    "full": {{"_target_": "monai_diffaug.transforms.local_inpaint.DiffusionLocalInpaintd", "keys": "image"}},
    "package": {{"_target_": "monai_diffaug.DiffusionLocalInpaintd", "keys": "image"}},
}})
made = [parser.get_parsed_content(id) for id in ("short", "full", "package")]
assert len({{type(each) for each in made}}) == 1, made
assert made[0].inpaint.settings.guidance_scale == 2.5
for name in names:
    found = parser.locator.get_component_module_name(name)
    print(name, found)
"""
    found = dict(line.split(" ", 1) for line in run_python(code).splitlines())
    assert set(found) == set(NAMES)
    assert all(module.startswith("monai_diffaug.transforms.") for module in found.values()), found


def test_the_locator_finds_each_short_name_in_one_module_only() -> None:
    """More than one makes MONAI warn and take the first."""
    code = """
import monai_diffaug as package
from monai.bundle import ConfigParser
names = [n for n in package.__all__ if isinstance(getattr(package, n), type)]
parser = ConfigParser({"imports": ["$import monai_diffaug"], "made": {"_target_": "SoftMaskd", "keys": "mask"}})
parser.get_parsed_content("made")
print([n for n in names if not isinstance(parser.locator.get_component_module_name(n), str)])
"""
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("module", ["monai_diffaug", "monai_diffaug.cli", "monai_diffaug.commands.bundle"])
def test_without_monai_the_package_and_its_command_line_stay_light(module: str) -> None:
    assert run_python(f"import sys, {module}; print(sorted({{'torch', 'monai', 'numpy', 'yaml'}} & set(sys.modules)))").strip() == "[]"
