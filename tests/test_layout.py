"""The layout of the package: import direction, one base name per concept, tests that mirror the source."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "monai_diffaug"
TESTS = ROOT / "tests"

# Each folder or root module may import itself and what stands in a line above it.
ORDER = (
    ("errors", "version", "prompts"),
    ("geometry",),
    ("files",),
    ("masks",),
    ("sampling",),
    ("models",),
    ("edit",),
    ("data",),
    ("transforms",),
    ("presets",),
    ("training",),
    ("bundles",),
    ("generate",),
    ("studies",),
    ("commands",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# Suites that test several folders together; all other tests mirror the source.
SUITES = ("acceptance", "cuda", "systems", "faults")


def _sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "weights" not in path.parts)


def _place(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("monai_diffaug"):
            below = node.module.split(".")[1:]
            imported |= {below[0]} if below else {alias.name for alias in node.names if alias.name in RANK}
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("monai_diffaug.")}
    return imported


def test_every_import_points_down_the_order_of_folders() -> None:
    upward = []
    for path in _sources():
        parts = path.relative_to(PACKAGE).parts
        if parts == ("__init__.py",):
            continue
        own = _place(parts)
        upward += [f"{'/'.join(parts)} -> {other}" for other in sorted(_imports(path)) if other != own and RANK[other] >= RANK[own]]
    assert not upward


def test_no_base_name_occurs_twice() -> None:
    paths = defaultdict(list)
    for path in _sources():
        if path.name != "__init__.py":
            paths[path.name].append(str(path.relative_to(PACKAGE)))
    assert not {name: found for name, found in paths.items() if len(found) > 1}


def test_every_folder_says_in_two_sentences_what_belongs_there() -> None:
    for folder in {path.parent for path in _sources()}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert text, folder
        assert folder == PACKAGE or len(text.split("\n\n")) >= 2, folder


def test_only_the_public_face_stands_at_the_root() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors", "version", "prompts"}


def test_each_test_file_mirrors_a_source_file() -> None:
    lost = []
    for path in TESTS.rglob("test_*.py"):
        parts = path.relative_to(TESTS).parts
        if len(parts) == 1 or parts[0] in SUITES:
            continue
        stem, folder = path.stem.removeprefix("test_"), PACKAGE.joinpath(*parts[:-1])
        if not any(stem == source.stem or stem.startswith(f"{source.stem}_") for source in folder.glob("*.py")):
            lost.append(str(path.relative_to(TESTS)))
    assert not lost


def test_no_source_file_is_longer_than_four_hundred_lines() -> None:
    assert not [str(path) for path in _sources() if len(path.read_text(encoding="utf-8").splitlines()) > 400]
