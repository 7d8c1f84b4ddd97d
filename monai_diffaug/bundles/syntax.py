"""The text of a config file: syntax errors with their line, and the line of each id."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_diffaug.bundles.macros import MOST_ENTRIES
from monai_diffaug.errors import MissingExtraError, one_line

__all__ = ["Fault", "line_table", "read_config"]

MOST_BYTES = 2**16  # that PyYAML reads in less than two seconds also without libyaml
MOST_LEVELS = 100
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
    if path.stat().st_size > MOST_BYTES:
        return [Fault(name, 0, "", f"{path.stat().st_size} bytes; a config has at most {MOST_BYTES}")]
    try:
        text = path.read_text(encoding="utf-8")
        if _deepest(text) > MOST_LEVELS:
            return [Fault(name, 0, "", f"brackets or indents are nested more than {MOST_LEVELS} levels deep")]
        content = json.loads(text) if path.suffix.lower() == ".json" else _yaml().load(text, Loader=_loader())
    except UnicodeDecodeError as error:
        return [Fault(name, 0, "", f"not UTF-8 text: {error.reason} at byte {error.start}")]
    except json.JSONDecodeError as error:
        return [Fault(name, error.lineno, "", f"JSON syntax error: {error.msg} (column {error.colno})")]
    except _yaml().YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or one_line(error)
        column = "" if mark is None else f" (column {mark.column + 1})"
        return [Fault(name, 0 if mark is None else mark.line + 1, "", f"YAML syntax error: {problem}{column}")]
    except (ValueError, TypeError, ArithmeticError, RecursionError, LookupError, AttributeError) as error:
        return [Fault(name, 0, "", f"cannot be read: {one_line(error)}")]
    if not isinstance(content, dict):
        return [Fault(name, 0, "", f"a config is a mapping of ids, got {'nothing' if content is None else type(content).__name__}")]
    size = _expanded_size(content, {})
    if size is None:
        return [Fault(name, 0, "", "an anchor holds its own alias: such a config has no end")]
    if size > MOST_ENTRIES:
        return [Fault(name, 0, "", f"its aliases expand to {size} entries; the most is {MOST_ENTRIES}")]
    entries = _entries(path)
    return _unreadable_keys(name, entries) or _double_keys(name, entries)


def _deepest(text: str) -> int:
    """Levels of brackets, and of indents, in a text; those in quoted texts count too."""
    level = deepest = 0
    for character in text:
        if character in "[{":
            level += 1
            deepest = max(deepest, level)
        elif character in "]}":
            level = max(level - 1, 0)
    dashes = max((len(match[0]) // 2 for match in re.finditer(r"^[ ]*(?:- )*", text, re.MULTILINE)), default=0)
    return max(deepest, dashes)


def _expanded_size(value: Any, sizes: dict[int, int | None]) -> int | None:
    """Number of entries with all aliases written out; None if a value holds itself. Each value is counted once."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = None  # while it is open
        parts = [_expanded_size(part, sizes) for part in (value.values() if isinstance(value, dict) else value)]
        sizes[id(value)] = None if None in parts else 1 + sum(part for part in parts if part is not None)
    return sizes[id(value)]


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
        root = yaml.compose(text, Loader=_loader())
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


def _loader() -> Any:
    """The safe loader, by libyaml where PyYAML has it: ten times as fast."""
    yaml = _yaml()
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("checking a bundle needs PyYAML: pip install monai_diffaug[bundle]") from None
    return yaml
