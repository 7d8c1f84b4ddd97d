"""The folder of an export: it appears whole or not at all, and replaces nothing but an earlier export."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_diffaug.generate.export_cases import CaseTable, ExportError
from monai_diffaug.generate.run_folder import Run
from monai_diffaug.version import __version__

__all__ = ["EXPORT_FILE", "describe", "read_export", "require_replaceable", "whole_folder", "write_json"]

EXPORT_FILE = "export.json"
EXPORT_FORMAT = 1


def describe(run: Run, table: CaseTable, export_format: str) -> dict[str, Any]:
    """Content of ``export.json``: where each case comes from."""
    cases = {
        case.name: {"synthetic": case.is_synthetic, "sources": list(case.sources), "groups": list(case.groups)} for case in table.cases
    }
    return {
        "format": EXPORT_FORMAT,
        "export": export_format,
        "package_version": __version__,
        "run": str(run.folder.absolute()),
        "spec_sha256": run.settings.get("spec_sha256", ""),
        "datalist": str(table.datalist_path.absolute()),
        "cases": cases,
    }


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A part folder next to ``out`` that is renamed to ``out`` at the end of the block, and removed if the block fails.

    The block must write ``export.json`` into it. An earlier export in ``out`` is replaced at the end.

    Raises:
        ExportError: ``out`` is a file, or holds something that no export has written.
        OSError: the folder cannot be written.
    """
    require_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    part, old = (out.with_name(f".{out.name}.{token}.{kind}") for kind in ("part", "old"))
    part.mkdir()
    try:
        yield part
        content = read_export(part)
        content["files"] = sorted(_files(part))
        write_json(part / EXPORT_FILE, content)
        require_replaceable(out)
        if out.exists():
            out.rename(old)
        try:
            part.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def require_replaceable(out: Path) -> None:
    """Raise ExportError if ``out`` is a file, or a folder with files that no export has written."""
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise ExportError(f"{out} is no folder; name another place")
    files = _files(out)
    if not files:
        return
    try:
        listed = set(read_export(out)["files"])
    except (ExportError, KeyError) as error:
        raise ExportError(f"{out} is there and is no export of this package; it is not replaced, name another folder") from error
    foreign = sorted(files - listed)
    if foreign:
        raise ExportError(f"{out} holds {foreign[0]}, which the export did not write; move it away, or name another folder")


def read_export(folder: Path) -> dict[str, Any]:
    """Content of ``export.json``.

    Raises:
        ExportError: missing, damaged, or of another version.
    """
    path = folder / EXPORT_FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ExportError(f"{path}: no such file; {folder} is no folder of `monai-diffaug export`") from error
    except ValueError as error:
        raise ExportError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != EXPORT_FORMAT:
        raise ExportError(f"{path} is of another version; use the version of monai_diffaug that wrote it")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()} - {EXPORT_FILE}
