from __future__ import annotations

import os
from pathlib import Path

import pytest

from monai_diffaug.commands.arguments import WrongInputError, check_out


def test_an_output_folder_that_is_there_or_can_be_made_is_accepted_and_not_made_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "a/b", Path("new"), Path()):
        check_out(folder)
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_below_a_file_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WrongInputError, match=r"file/a/b cannot be made: .*file is a file"):
        check_out(tmp_path / "file/a/b")


def test_an_output_folder_that_may_not_be_written_is_refused_before_the_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)
    for folder in (tmp_path, tmp_path / "a/b"):
        with pytest.raises(WrongInputError, match=f"no right to write {tmp_path}$"):
            check_out(folder)
