from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import monai_diffaug
from monai_diffaug import presets

MOST_PARAMETERS = 18
OPTIONAL = ("diffusers", "segment_anything", "transformers")


@pytest.mark.slow
def test_importing_the_package_imports_no_optional_model_library() -> None:
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


def public_classes() -> dict[str, type]:
    named = {name: getattr(monai_diffaug, name) for name in monai_diffaug.__all__}
    return {name: each for name, each in named.items() if inspect.isclass(each) and not issubclass(each, Exception)}


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in monai_diffaug.__all__:
        assert getattr(monai_diffaug, name).__doc__ or name == "__version__"


@pytest.mark.parametrize("build", [*public_classes().values(), *(getattr(presets, name) for name in presets.__all__)])
def test_no_constructor_and_no_preset_has_more_than_eighteen_parameters(build: Any) -> None:
    assert len(inspect.signature(build).parameters) <= MOST_PARAMETERS


@pytest.mark.parametrize("name", [*public_classes(), *presets.__all__])
def test_every_public_class_and_preset_has_a_runnable_example_of_at_most_eight_lines(name: str) -> None:
    public = public_classes().get(name) or getattr(presets, name)
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(public) or "")
    lines = sum(example.source.count("\n") + example.want.count("\n") for example in examples)
    assert examples and lines <= 8


def test_what_is_returned_and_what_is_configured_is_exported() -> None:
    assert {"Edit", "Verdict", "DiffAugRecord", "Novelty", "Merge", "Vocabulary", "InpaintOptions", "Validator"} <= set(
        monai_diffaug.__all__
    )
    assert monai_diffaug.presets is presets and set(dir(monai_diffaug)) == set(monai_diffaug.__all__)


@pytest.mark.slow
def test_one_edit_enters_at_most_seven_folders(random_inpainter: str) -> None:
    """Of code that runs for an edit in 2-D, loading included."""
    import torch

    from monai_diffaug.models import registry

    package = Path(monai_diffaug.__file__).parent
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    sample = {"image": torch.rand(1, 64, 64), "label": mask, "mask": mask, "prompt": "CT of liver, cyst"}
    edit = monai_diffaug.DiffusionLocalInpaintd("image", label_key="label", model=random_inpainter, num_inference_steps=2)
    registry.clear()
    files: set[Path] = set()
    sys.setprofile(lambda frame, event, argument: files.add(Path(frame.f_code.co_filename)))
    try:
        assert edit(sample)["image_diffaug"]["applied"]
    finally:
        sys.setprofile(None)
    folders = {file.relative_to(package).parts[0] for file in files if file.is_relative_to(package)} - {"errors.py"}
    assert folders == {"transforms", "edit", "geometry", "masks", "sampling", "models"}


@pytest.mark.parametrize("command", [["-m", "monai_diffaug"], [str(Path(sys.executable).parent / "monai-diffaug")]])
@pytest.mark.parametrize("arguments", [["--help"], ["augment", "--help"], ["evaluate", "no-such-study"]])
def test_the_command_line_answers_without_torch_and_monai(command: list[str], arguments: list[str]) -> None:
    result = subprocess.run([sys.executable, "-X", "importtime", *command, *arguments], capture_output=True, text=True, check=False)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "monai_diffaug.commands.cli" in modules and not {"torch", "monai", "numpy", "yaml"} & modules


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(monai_diffaug, "NoSuchTransform")
