"""State of one check of a config: the parser, the line of each id, and the faults so far."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffaug.bundles.syntax import Fault
from monai_diffaug.edit.signature import nearest_name

__all__ = ["ConfigCheck", "expression_tree", "import_statement", "nearest_hint", "reason_of"]

META_KEY = "_meta_"
LONGEST_EXPRESSION = 4096  # characters; longer ones can exhaust the stack of Python's parser


@dataclass
class ConfigCheck:
    """One check of a config.

    Attributes:
        parser: MONAI's ``ConfigParser`` of the config.
        lines: id -> (file, line).
        first_file: file of faults without a line.
        faults: in the order in which they were found.
        faulty: ids with a fault.
        located: id of a component -> its class or function.
        imported: name -> module, of the import statements in the config.
        make: MONAI's transforms are constructed, and modules of the bundle imported.
        folders: where modules of the bundle are.
    """

    parser: Any
    lines: Mapping[str, tuple[str, int]]
    first_file: str
    faults: list[Fault] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)
    located: dict[str, Any] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)
    make: bool = False
    folders: tuple[Path, ...] = ()

    def add(self, where: str, message: str) -> None:
        """Add a fault at an id, with the line of the id or of its nearest parent."""
        name = where
        while name and name not in self.lines:
            name = name.rpartition("::")[0]
        file, line = self.lines.get(name, (self.first_file, 0))
        fault = Fault(file, line, where, " ".join(message.split()))
        self.faulty.add(where)
        if fault not in self.faults:
            self.faults.append(fault)

    @property
    def items(self) -> dict[str, Any]:
        """All items of the parsed config by id, without the metadata."""
        items: dict[str, Any] = self.parser.ref_resolver.items
        return {id_: item for id_, item in items.items() if id_.partition("::")[0] != META_KEY}


def import_statement(text: str) -> ast.Import | ast.ImportFrom | None:
    """The import statement in an expression "$import ...", None if it is another expression."""
    if not text[1:].strip().startswith(("import ", "from ")) or len(text) > LONGEST_EXPRESSION:
        return None
    try:
        body = ast.parse(text[1:].strip()).body
    except (SyntaxError, ValueError):
        return None
    return body[0] if body and isinstance(body[0], (ast.Import, ast.ImportFrom)) else None


def expression_tree(check: ConfigCheck, text: str) -> ast.expr:
    """The syntax tree of an expression "$...", with the name ``__ref`` for its references."""
    if len(text) > LONGEST_EXPRESSION:
        raise ValueError(f"an expression of {len(text)} characters")
    resolver = check.parser.ref_resolver
    return ast.parse(resolver.id_matcher.sub("__ref", resolver.normalize_id(text[1:])).strip(), mode="eval").body


def nearest_hint(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The hint "; did you mean NAME?" with the nearest name; empty if none is close.

    >>> nearest_hint("guidance", ["guidance_scale", "strength"])
    '; did you mean guidance_scale?'
    """
    nearest = nearest_name(name, names)
    return f"; did you mean {prefix}{nearest}?" if nearest else ""


def reason_of(error: BaseException) -> str:
    """The message of the first cause of an error, without MONAI's wrapping."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"
