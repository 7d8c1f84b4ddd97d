from __future__ import annotations

import pytest

from monai_diffaug.generate.export_cases import ExportError
from monai_diffaug.generate.export_folder import EXPORT_FILE, whole_folder, write_json


def write(out, name, content="x"):
    with whole_folder(out) as part:
        write_json(part / EXPORT_FILE, {"format": 1, "cases": {}})
        (part / "sub").mkdir()
        (part / "sub" / name).write_text(content)


def test_a_folder_appears_whole_and_an_earlier_export_is_replaced(tmp_path):
    out = tmp_path / "out"
    write(out, "one")
    write(out, "two")
    assert sorted(path.name for path in out.rglob("*")) == [EXPORT_FILE, "sub", "two"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_the_earlier_export_and_no_part(tmp_path):
    out = tmp_path / "out"
    write(out, "one")
    with pytest.raises(RuntimeError), whole_folder(out) as part:
        (part / "half").write_text("x")
        raise RuntimeError
    assert (out / "sub" / "one").read_text() == "x" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_foreign_file_in_an_export_and_a_foreign_folder_are_refused(tmp_path):
    out = tmp_path / "out"
    write(out, "one")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds notes\.txt"):
        write(out, "two")
    assert (out / "notes.txt").read_text() == "mine" and (out / "sub" / "one").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "a.txt").write_text("mine")
    with pytest.raises(ExportError, match="no export of this package"):
        write(foreign, "two")
    with pytest.raises(ExportError, match="no folder"):
        write(foreign / "a.txt", "two")
    assert (foreign / "a.txt").read_text() == "mine"


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "one")
    assert (tmp_path / "out" / "sub" / "one").exists()


def test_a_file_that_appears_in_the_folder_while_the_export_runs_is_not_lost(tmp_path):
    out = tmp_path / "out"
    write(out, "one")
    with pytest.raises(ExportError, match="late"), whole_folder(out) as part:
        write_json(part / EXPORT_FILE, {"format": 1})
        (out / "late").write_text("mine")
    assert (out / "late").read_text() == "mine"
