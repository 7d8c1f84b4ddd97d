from __future__ import annotations

import subprocess
import sys

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


def test_importing_the_package_alone_imports_neither_torch_nor_monai() -> None:
    code = "import sys, monai_diffaug; print({'torch', 'monai'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(monai_diffaug, "NoSuchTransform")
