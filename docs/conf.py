"""Configuration of the documentation site; what is generated goes to ``docs/_generated`` and ``docs/tutorials``.

``python -m sphinx -W --keep-going -b html docs docs/_build/html`` builds it without a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import inspect, logging

import monai_diffaug
from monai_diffaug.commands import cli, evaluate

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = DOCS / "_generated"
sys.path.insert(0, str(DOCS))  # pictures.py

project = "monai_diffaug"
author = "The monai_diffaug developers"
project_copyright = "the monai_diffaug developers, Apache-2.0"
version = release = monai_diffaug.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design"]
exclude_patterns = ["_build", "_generated", "Thumbs.db"]
html_theme = "furo"
html_title = "monai_diffaug"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]

nb_execution_mode = "off"  # the notebooks are shown as they were saved; the tests execute them
nb_merge_streams = True
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # MONAI's texts about its base classes
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("KeysCollection", "NdarrayOrTensor", "BoxSource", "ShapeSource", "EdgeDetector", "Finding")}
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
FACTORY = re.compile(r"(\w+): ([~\w.]*?)(\w+) = <factory>")
PACKAGES_OF_PICTURES = ("edit", "geometry", "masks", "models", "sampling", "transforms", "weights", "data")
COMMANDS = (
    [],
    ["demo"],
    ["augment"],
    ["generate"],
    ["export"],
    ["audit"],
    ["report"],
    ["train"],
    ["evaluate"],
    ["lesion-bank"],
    ["bundle", "check"],
    ["bundle", "copy"],
    ["info"],
)


def setup(app: Sphinx) -> None:
    """Generate what the pages include before they are read."""
    app.connect("builder-inited", lambda app: generate())
    app.connect("autodoc-process-signature", _signature)


def _signature(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None) -> Any:
    """The constructor's signature in place of MONAI's ``__new__(*args, **kwargs)``, with type aliases by name."""
    if what == "class" and signature is not None:
        parameters = inspect.signature(obj.__init__, bound_method=True, type_aliases=app.config.autodoc_type_aliases)
        signature = inspect.stringify_signature(parameters, unqualified_typehints=True, show_return_annotation=False)
        signature = FACTORY.sub(r"\1: \2\3 = \3()", signature)
    return tuple(text and ALIAS.sub(r"\1", text) for text in (signature, returns))


def generate() -> None:
    """Copy the notebooks, write the help of each command, and paint the pictures unless they are up to date."""
    GENERATED.mkdir(exist_ok=True)
    for notebook in (ROOT / "tutorials").glob("*.ipynb"):
        shutil.copy2(notebook, DOCS / "tutorials" / notebook.name)
    shutil.copy2(ROOT / "tutorials" / "demo_brain.png", GENERATED)
    _write(GENERATED / "commands.md", _commands())
    _write(GENERATED / "studies.md", _studies())
    _paint()


def _paint() -> None:
    from pictures import PICTURES, write_pictures

    folder, stamp = GENERATED / "pictures", GENERATED / "pictures.sha256"
    sources = [DOCS / "pictures.py"]
    sources += sorted(file for name in PACKAGES_OF_PICTURES for file in (ROOT / "monai_diffaug" / name).rglob("*") if file.is_file())
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources if "__pycache__" not in file.parts)).hexdigest()
    complete = all((folder / f"{name}.png").is_file() for name in PICTURES)
    if complete and stamp.is_file() and stamp.read_text() == digest:
        return
    logging.getLogger(__name__).info("painting %d pictures", len(PICTURES))
    write_pictures(folder)
    stamp.write_text(digest)


def _commands() -> str:
    parts = []
    for command in COMMANDS:
        title = " ".join(["monai-diffaug", *command])
        parts.append(f"## `{title}`\n\n```text\n{_help(cli.main, [*command, '--help'])}```\n")
    return "\n".join(parts)


def _studies() -> str:
    parts = []
    for name in evaluate.STUDIES:
        parts.append(f"### `monai-diffaug evaluate {name}`\n\n```text\n{_help(cli.main, ['evaluate', name, '--help'])}```\n")
    return "\n".join(parts)


def _help(main: Any, arguments: list[str]) -> str:
    """What a command prints for these arguments, on lines of at most 92 characters."""
    text = io.StringIO()
    os.environ["COLUMNS"] = "92"
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(arguments)
    if not text.getvalue():
        raise RuntimeError(f"monai-diffaug {' '.join(arguments)} prints nothing")
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    """Write a file only when it changes, so that Sphinx does not read its pages again."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
