"""The tutorials are executed, most of them with the smaller numbers below, and their saved outputs are checked."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
NAMES = [path.stem for path in TUTORIALS]
# notebook -> values of the cell tagged "parameters" that keep a run short; other notebooks run unchanged
REDUCED: Mapping[str, Mapping[str, Any]] = {
    "02_caching_and_workers": {"EPOCHS": 2, "STEPS": 1},
    "03_mila_tmgdiff": {"STEPS": 4, "SCALES": (0.0, 1.0)},
    "04_diffaug": {"STEPS": 2, "N": 3},
    "05_emit_diff": {"STEPS": 4, "N": 2, "TRAINING_STEPS": 4},
    "06_medsoft_diffusion": {"STEPS": 3, "PLACES": 2},
    "07_fine_tuning": {"STEPS": 2, "TRAINING_STEPS": 2},
    "09_transplant_and_erase": {"N": 2},
}
MOST_BYTES = 600_000
MOST_LINES = 45  # of text in one output: a screen


def read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def assigned(source: str) -> set[str]:
    """Names that a cell's statements assign at its top level."""
    targets = [target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def with_parameters(path: Path, values: Mapping[str, Any]) -> Any:
    """The notebook with one more cell, after the one tagged "parameters", that sets other values."""
    from nbformat.v4 import new_code_cell

    notebook = read(path)
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, f"{path.name} needs one cell tagged 'parameters'"
    missing = set(values) - assigned(notebook.cells[tagged[0]].source)
    assert not missing, f"the parameters of {path.name} do not have {missing}"
    notebook.cells.insert(tagged[0] + 1, new_code_cell("\n".join(f"{name} = {value!r}" for name, value in values.items())))
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=NAMES)
def test_the_tutorial_runs(path: Path, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    values = REDUCED.get(path.stem, {})
    notebook = with_parameters(path, values) if values else read(path)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", TUTORIALS, ids=NAMES)
def test_the_tutorial_was_saved_as_it_ran_from_top_to_bottom(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)


@pytest.mark.parametrize("path", TUTORIALS, ids=NAMES)
def test_no_saved_output_is_an_error_a_warning_or_longer_than_a_screen(path: Path) -> None:
    for output in (output for cell in code_cells(path) for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        assert "Warning" not in text
        assert len(text.splitlines()) <= MOST_LINES
    assert path.stat().st_size <= MOST_BYTES


def test_the_reduced_tutorials_exist() -> None:
    assert set(REDUCED) <= set(NAMES)


def test_there_is_a_quickstart_and_one_tutorial_per_system() -> None:
    assert {"01_quickstart", "03_mila_tmgdiff", "04_diffaug", "05_emit_diff", "06_medsoft_diffusion", "07_fine_tuning"} <= set(NAMES)
