"""The text of a config file: syntax errors with their line, and the line of each id."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_diffaug.errors import MissingExtraError

__all__ = ["Fault", "line_table", "read_config"]

SUFFIXES = (".json", ".yaml", ".yml")
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Fault:
    """One fault in a config.

    Attributes:
        file: the file that holds it.
        line: counted from 1; 0 for the whole file.
        where: id in MONAI's form, e.g. "train::dataset::transform"; empty for the whole file.
        message: the fault, on one line.
    """

    file: str
    line: int
    where: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.where}: {self.message}" if self.where else f"{place}: {self.message}"


def read_config(path: Path) -> list[Fault]:
    """The faults that prevent reading a file; none if it is a mapping without double keys.

    Raises:
        MissingExtraError: PyYAML is not installed.
    """
    name = str(path)
    if path.is_dir():
        return [Fault(name, 0, "", f"a folder; name its config, e.g. {path / 'configs' / 'train.yaml'}")]
    if not path.is_file():
        return [Fault(name, 0, "", "file not found")]
    if path.suffix.lower() not in SUFFIXES:
        return [Fault(name, 0, "", f"not a config file: expected {', '.join(SUFFIXES)}")]
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else _yaml().safe_load(text)
    except UnicodeDecodeError as error:
        return [Fault(name, 0, "", f"not UTF-8 text: {error.reason} at byte {error.start}")]
    except json.JSONDecodeError as error:
        return [Fault(name, error.lineno, "", f"JSON syntax error: {error.msg} (column {error.colno})")]
    except _yaml().YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        column = "" if mark is None else f" (column {mark.column + 1})"
        return [Fault(name, 0 if mark is None else mark.line + 1, "", f"YAML syntax error: {problem}{column}")]
    if not isinstance(content, dict):
        return [Fault(name, 0, "", f"a config is a mapping of ids, got {'nothing' if content is None else type(content).__name__}")]
    if _holds_itself(content):
        return [Fault(name, 0, "", "an anchor holds its own alias: such a config has no end")]
    entries = _entries(path)
    return _unreadable_keys(name, entries) or _double_keys(name, entries)


def _holds_itself(value: Any, above: frozenset[int] = frozenset()) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return id(value) in above or any(_holds_itself(part, above | {id(value)}) for part in parts)


def line_table(path: Path) -> dict[str, tuple[str, int]]:
    """(file, line) of each id in a file without faults."""
    return {id_: (str(path), line) for id_, line, _ in _entries(path)}


def _unreadable_keys(file: str, entries: list[tuple[str, int, str]]) -> list[Fault]:
    """Keys that are valid YAML but that MONAI's loader does not accept: merges, and ids at the top that are no text."""
    faults = []
    for id_, line, tag in entries:
        if tag == MERGE:
            faults.append(Fault(file, line, "", "MONAI cannot read merge keys (<<); write the entries out, or use a reference"))
        elif tag not in (TEXT, "") and "::" not in id_:
            faults.append(Fault(file, line, "", f"the id {id_} is no text; put it in quotes"))
    return faults


def _double_keys(file: str, entries: list[tuple[str, int, str]]) -> list[Fault]:
    lines: dict[str, int] = {}
    faults = []
    for id_, line, _ in entries:
        if id_ in lines:
            faults.append(Fault(file, line, id_, f"the key is there twice; line {lines[id_]} is lost"))
        lines[id_] = line
    return faults


def _entries(path: Path) -> list[tuple[str, int, str]]:
    """(id, line, YAML tag of the key) of every key and list entry (tag empty), in the file's order.

    JSON is read as YAML, of which it is a subset except for tabs.
    """
    yaml = _yaml()
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".json":
        text = re.sub(r"^\t+", lambda tabs: "  " * len(tabs[0]), text, flags=re.MULTILINE)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return []
    entries: list[tuple[str, int, str]] = []
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        prefix, node = waiting.pop()
        children = []
        if node.id == "mapping":
            children = [(str(key.value).replace("#", "::"), key.start_mark.line, str(key.tag), value) for key, value in node.value]
        elif node.id == "sequence":
            children = [(str(i), value.start_mark.line, "", value) for i, value in enumerate(node.value)]
        for name, line, tag, value in children:
            id_ = f"{prefix}::{name}" if prefix else name.removeprefix("+")
            entries.append((id_, line + 1, tag))
            waiting.append((id_, value))
    return entries


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("checking a bundle needs PyYAML: pip install monai_diffaug[bundle]") from None
    return yaml
