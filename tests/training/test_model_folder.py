from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_diffaug.training.model_folder import replace_parts, require_own_folder
from monai_diffaug.training.run_settings import TrainingInputError


def new_model(folder: Path, *names: str) -> Path:
    """A freshly written model of folders with one file each."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "new").touch()
    return folder


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_parts_of_the_run_are_replaced_and_other_files_stay(tmp_path):
    out, state = tmp_path / "out", tmp_path / "out/training"
    replace_parts(new_model(tmp_path / "first", "unet", "vae"), out, state)
    (out / "unet/old").touch()
    (out / "notes.txt").touch()
    replace_parts(new_model(tmp_path / "second", "unet", "text"), out, state)
    assert tree(out) == ["notes.txt", "text/new", "training/parts.json", "unet/new", "vae/new"]
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_the_run_did_not_write_is_not_replaced(tmp_path, kind):
    out, state = tmp_path / "out", tmp_path / "out/training"
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").touch()
    if kind == "file":
        (out / "vae").write_text("precious")
    elif kind == "folder":
        (out / "vae").mkdir()
        (out / "vae/precious").touch()
    else:
        (out / "vae").symlink_to(tmp_path / "elsewhere")
    before = tree(out)
    with pytest.raises(TrainingInputError, match=r"vae is not from this run and is not replaced; move it away"):
        replace_parts(new_model(tmp_path / "part", "unet", "vae"), out, state)
    assert tree(out) == before and (tmp_path / "elsewhere/kept").exists() and (tmp_path / "part/vae/new").exists()


def test_a_link_in_the_place_of_a_part_is_not_followed(tmp_path):
    out, state = tmp_path / "out", tmp_path / "out/training"
    replace_parts(new_model(tmp_path / "first", "vae"), out, state)
    (out / "vae").rename(tmp_path / "moved")
    (out / "vae").symlink_to(tmp_path / "moved")
    with pytest.raises(TrainingInputError, match="vae is not from this run"):
        replace_parts(new_model(tmp_path / "second", "vae"), out, state)
    assert (tmp_path / "moved/new").exists()


def test_a_folder_with_foreign_files_is_refused_and_a_new_empty_or_used_one_is_not(tmp_path):
    out, state = tmp_path / "out", tmp_path / "out/training"
    require_own_folder(out, state)
    out.mkdir()
    (out / ".gitkeep").touch()
    require_own_folder(out, state)
    (out / "vae").write_text("precious")
    with pytest.raises(TrainingInputError, match="holds vae and no earlier run; a model is written to an empty or new folder"):
        require_own_folder(out, state)
    state.mkdir()
    (state / "settings.json").write_text(json.dumps({"epochs": 3}))
    with pytest.raises(TrainingInputError, match=r"settings\.json is not of a run"):
        require_own_folder(out, state)
    (state / "settings.json").write_text(json.dumps({"recipe": "vae"}))
    require_own_folder(out, state)
