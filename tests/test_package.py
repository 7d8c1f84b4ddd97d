from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import monai_diffaug

OPTIONAL = ("diffusers", "segment_anything", "transformers")


def test_importing_the_package_imports_no_model_library_of_its_own() -> None:
    """MONAI imports some of them where they are installed, so they are made unimportable first."""
    code = (
        "import sys\n"
        f"for name in {OPTIONAL!r}: sys.modules[name] = None\n"
        "import monai_diffaug\n"
        "print(sum(getattr(monai_diffaug, name) is not None for name in monai_diffaug.__all__))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(len(monai_diffaug.__all__))


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in monai_diffaug.__all__:
        assert getattr(monai_diffaug, name).__doc__ or name == "__version__"


@pytest.mark.parametrize("command", [["-m", "monai_diffaug"], [str(Path(sys.executable).parent / "monai-diffaug")]])
@pytest.mark.parametrize("arguments", [["--help"], ["augment", "--help"], ["evaluate", "no-such-study"]])
def test_the_command_line_answers_without_torch_and_monai(command: list[str], arguments: list[str]) -> None:
    result = subprocess.run([sys.executable, "-X", "importtime", *command, *arguments], capture_output=True, text=True, check=False)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "monai_diffaug.commands.cli" in modules and not {"torch", "monai", "numpy", "yaml"} & modules


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(monai_diffaug, "NoSuchTransform")
