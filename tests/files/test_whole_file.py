from __future__ import annotations

import multiprocessing
import re
from pathlib import Path

import pytest

import monai_diffaug
from monai_diffaug.files.whole_file import content_hash, locked_folder, part_of, same_place, whole_file

SOURCES = Path(monai_diffaug.__file__).parent


def test_a_failed_write_leaves_neither_file_nor_part(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.nii.gz") as part:
        part.write_bytes(b"half")
        assert part.name.endswith(".part.nii.gz")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_older_file(tmp_path) -> None:
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.json") as part:
        part.write_text("new")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


def test_two_writers_of_one_file_never_mix_their_bytes(tmp_path) -> None:
    target = tmp_path / "a.bin"
    with whole_file(target) as one, whole_file(target) as other, one.open("wb") as long, other.open("wb") as short:
        long.write(b"1" * 9000)
        short.write(b"2" * 4000)
    assert target.read_bytes() == b"1" * 9000 and list(tmp_path.iterdir()) == [target]


def _write_often(target: Path, digit: str) -> None:
    for length in range(1000, 1100):
        with whole_file(target) as part, part.open("w") as file:
            for _ in range(10):
                file.write(digit * length)
                file.flush()


def test_processes_that_write_one_file_at_once_leave_a_whole_file_and_no_part(tmp_path) -> None:
    target = tmp_path / "a.txt"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(target, digit)) for digit in "12"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert set(target.read_text()) in ({"1"}, {"2"}) and target.stat().st_size == 10990 and list(tmp_path.iterdir()) == [target]


def test_a_link_at_a_part_name_is_not_written_through(tmp_path, monkeypatch) -> None:
    (tmp_path / "precious").write_text("precious")
    names = iter(["taken", "free"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    (tmp_path / ".taken.part.json").symlink_to(tmp_path / "precious")
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("new")
    assert (tmp_path / "precious").read_text() == "precious" and (tmp_path / "a.json").read_text() == "new"


def test_a_link_at_the_place_of_a_result_is_replaced_and_its_target_stays(tmp_path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.json").symlink_to("precious")
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("new")
    assert (tmp_path / "precious").read_text() == "precious" and not (tmp_path / "a.json").is_symlink()


def test_a_read_only_file_is_not_replaced(tmp_path) -> None:
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "a.json").chmod(0o444)
    with pytest.raises(PermissionError, match=r"a\.json is read-only and is not replaced"), whole_file(tmp_path / "a.json"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


def test_every_writer_of_the_package_uses_unique_part_names() -> None:
    fixed = re.compile(r"with_suffix\([^)]*part|\"\.part\"\)|/ \"part\"")
    assert not [str(file) for file in SOURCES.rglob("*.py") if fixed.search(file.read_text(encoding="utf-8"))]


def test_a_part_file_has_the_permissions_of_a_new_file(tmp_path) -> None:
    (tmp_path / "usual").touch()
    assert part_of(tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_one_file_by_two_paths_is_one_place(tmp_path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "soft").symlink_to("a")
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    (tmp_path / "b").touch()
    assert same_place(tmp_path / "a", tmp_path / "soft") and same_place(tmp_path / "a", tmp_path / "hard")
    assert not same_place(tmp_path / "a", tmp_path / "b") and not same_place(tmp_path / "a", tmp_path / "missing")


def test_the_hash_of_a_folder_counts_names_and_contents(tmp_path) -> None:
    for name, text in (("x", "1"), ("y", "1"), ("z", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.dcm").write_text(text)
    first, same, other = (content_hash(tmp_path / name) for name in "xyz")
    assert first == same != other
    (tmp_path / "y/0.dcm").rename(tmp_path / "y/1.dcm")
    assert content_hash(tmp_path / "y") != first
    assert content_hash(tmp_path / "x/0.dcm") == content_hash(tmp_path / "y/1.dcm")


def test_a_folder_is_locked_for_others_until_the_end_of_the_block(tmp_path) -> None:
    with locked_folder(tmp_path) as first, locked_folder(tmp_path, wait=False) as second:
        assert first and not second
    with locked_folder(tmp_path, wait=False) as free:
        assert free
    assert list(tmp_path.iterdir()) == []
