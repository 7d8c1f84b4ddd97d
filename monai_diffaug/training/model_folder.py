"""The folder of a trained model: what a run wrote is replaced part by part, what it did not write stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from monai_diffaug.files.whole_file import whole_file
from monai_diffaug.training.run_settings import SETTINGS_FILE, TrainingInputError

__all__ = ["replace_parts", "require_own_folder"]

PARTS_FILE = "parts.json"  # names of the files and folders that the run wrote next to the folder of its state


def require_own_folder(folder: Path, state_folder: Path) -> None:
    """Check that a model may be written to ``folder``: it is missing, empty (but for hidden files), or an earlier run wrote to it.

    Raises:
        TrainingInputError: it holds other files; names one.
    """
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    settings = state_folder / SETTINGS_FILE
    if names and not settings.is_file():
        raise TrainingInputError(
            f"{folder} holds {names[0]} and no earlier run; a model is written to an empty or new folder, give another --out"
        )
    if names and _is_foreign(settings):
        raise TrainingInputError(f"{settings} is not of a run; a model is written to an empty or new folder, give another --out")


def _is_foreign(settings: Path) -> bool:
    try:
        content = json.loads(settings.read_text(encoding="utf-8"))
    except ValueError:
        return False  # a damaged file of a run has an error of its own
    return isinstance(content, dict) and "recipe" not in content


def replace_parts(written: Path, folder: Path, state_folder: Path) -> None:
    """Move everything in ``written`` into ``folder``, replacing what the run wrote before under the same name; remove ``written``.

    Args:
        written: the new model.
        folder: of the model.
        state_folder: of the run's state, where the names of the written parts are kept.

    Raises:
        TrainingInputError: a file, folder or link that the run did not write has the name of a part; nothing is replaced then.
    """
    manifest = state_folder / PARTS_FILE
    before = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else []
    parts = sorted(written.iterdir())
    for part in parts:
        target = folder / part.name
        if os.path.lexists(target) and (part.name not in before or target.is_symlink()):
            raise TrainingInputError(
                f"{target} is not from this run and is not replaced; move it away and give the same command again, the state is saved"
            )
    folder.mkdir(parents=True, exist_ok=True)
    state_folder.mkdir(parents=True, exist_ok=True)
    with whole_file(manifest) as file:
        file.write_text(json.dumps(sorted({*before, *(part.name for part in parts)})) + "\n", encoding="utf-8")
    for part in parts:
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        elif part.is_dir():
            target.unlink(missing_ok=True)  # a folder cannot replace a file
        part.replace(target)
    written.rmdir()
