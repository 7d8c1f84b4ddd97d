"""Values of a config without running it: plain data, references to them, and arithmetic of both; all else is unknown.

This package's own transforms and option groups are made of such values, so that their constructors check their options. Of MONAI's
transforms only the keys are read; none of their code runs.
"""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from monai_diffaug.bundles.check_state import ConfigCheck, expression_tree, import_statement, reason_of

__all__ = ["UNKNOWN", "PlainValues"]

LONGEST_TEXT = 10_000  # characters of a text that + makes
LARGEST = 10**15  # of a number that arithmetic makes
OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
# attributes of MONAI's transforms by which the keys of a sample are followed
READ_OF_MONAI = (
    "keys",
    "names",
    "name",
    "allow_missing_keys",
    "new_key_prefix",
    "output_postfixes",
    "output_key",
    "output_keys",
    "new_key",
)
TUPLES = ("keys", "names")
READ_FILES = ("bank", "donors", "novelty")  # options of this package that may name files, which are read when the object is made


class _Unknown:
    """A value that only running the config would tell; as a transform it may do anything."""

    def __call__(self, data: Any) -> Any:
        return data


UNKNOWN = _Unknown()


class PlainValues:
    """The values of one config.

    Args:
        check: faults of the constructors are added to it.
    """

    def __init__(self, check: ConfigCheck) -> None:
        self.check = check
        self.values: dict[str, Any] = {}
        self.made: dict[str, Any] = {}  # id of a component -> object of this package, or stand-in of a MONAI transform
        self._open: list[str] = []

    def of(self, id_: str) -> Any:
        """The value under an id, ``UNKNOWN`` if it has none that is plain; a circle of references is a fault."""
        if id_ in self._open:
            self.check.add(self._open[0], f"circular reference {' -> '.join((*self._open[self._open.index(id_) :], id_))}")
            return UNKNOWN
        if id_ not in self.values:
            item = self.check.parser.ref_resolver.items.get(id_)
            self._open.append(id_)
            self.values[id_] = UNKNOWN if item is None else self._value(item.get_config(), id_)
            self._open.pop()
        return self.values[id_]

    def _value(self, config: Any, id_: str) -> Any:
        if isinstance(config, dict) and "_target_" in config:
            return self._component(config, id_)
        if isinstance(config, dict):
            inner = {key: self.of(f"{id_}::{key}") for key in config}
            return UNKNOWN if any(value is UNKNOWN for value in inner.values()) else inner
        if isinstance(config, list):
            values = [self.of(f"{id_}::{index}") for index in range(len(config))]
            return UNKNOWN if any(value is UNKNOWN for value in values) else values
        if not isinstance(config, str):
            return config
        resolver = self.check.parser.ref_resolver
        if config.startswith("$"):
            if import_statement(config):
                return UNKNOWN
            refs = iter(_refs(resolver, config))
            try:
                return self._expression(expression_tree(self.check, config), refs)
            except (SyntaxError, StopIteration, ArithmeticError, TypeError, ValueError, RecursionError, MemoryError):
                return UNKNOWN
        refs_of_text = _refs(resolver, config)
        return self.of(refs_of_text[0]) if config.startswith("@") and len(refs_of_text) == 1 else config

    def _expression(self, node: ast.expr, refs: Iterator[str]) -> Any:
        """Interpret literals, references and + - * / // %; operands are evaluated in the order of the text, as ``refs`` are."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.of(next(refs)) if node.id == "__ref" else UNKNOWN
        if isinstance(node, (ast.List, ast.Tuple)):
            values = [self._expression(each, refs) for each in node.elts]
            return UNKNOWN if any(value is UNKNOWN for value in values) else type(values)(values)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._expression(node.operand, refs)
            return -value if isinstance(value, (int, float)) else UNKNOWN
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            left, right = self._expression(node.left, refs), self._expression(node.right, refs)
            if isinstance(node.op, ast.Add) and isinstance(left, str) and isinstance(right, str):
                return left + right if len(left) + len(right) <= LONGEST_TEXT else UNKNOWN
            if all(isinstance(each, (int, float)) and abs(each) <= LARGEST for each in (left, right)):
                return OPERATORS[type(node.op)](left, right)
        return UNKNOWN

    def _component(self, config: Mapping[str, Any], id_: str) -> Any:
        from monai.transforms import Compose, Transform

        from monai_diffaug.edit.signature import is_option_group

        located = self.check.located.get(id_)
        items = self.check.parser.ref_resolver.items
        if not inspect.isclass(located) or _is_disabled(items, id_) or config.get("_mode_", "default") != "default":
            return UNKNOWN
        names = [name for name in config if not (name.startswith("_") and name.endswith("_"))]
        if located is Compose:
            steps = config.get("transforms")
            count = len(steps) if isinstance(steps, list) else 0
            chain = [
                self.of(f"{id_}::transforms::{index}") for index in range(count) if not _is_disabled(items, f"{id_}::transforms::{index}")
            ]
            compose: Any = Compose
            self.made[id_] = compose(chain)
            return self.made[id_]
        arguments = {name: self.of(f"{id_}::{name}") for name in names}
        if located.__module__.startswith("monai_diffaug.") and (is_option_group(located) or issubclass(located, Transform)):
            return self._own(located, arguments, id_)
        if located.__module__.startswith("monai.") and issubclass(located, Transform):
            return self._stand_in(located, arguments, id_)
        return UNKNOWN

    def _own(self, located: Any, arguments: Mapping[str, Any], id_: str) -> Any:
        if any(self._may_run(name, value) for name, value in arguments.items()):
            return UNKNOWN
        faulty = {fault for fault in self.check.faulty if fault == id_ or fault.startswith(f"{id_}::")}
        if faulty or any(value is UNKNOWN for value in arguments.values()):
            return UNKNOWN
        try:
            self.made[id_] = located(**arguments)
        except Exception as error:
            self.check.add(id_, f"{located.__name__}: {reason_of(error)}")
            return UNKNOWN
        return self.made[id_]

    def _may_run(self, name: str, value: Any) -> bool:
        """Whether a constructor of this package would read files by MONAI's readers, or call an object whose constructor did not run."""
        if name in READ_FILES and value is not None:
            return True
        values = value if isinstance(value, (list, tuple)) else [value]
        return any(type(each).__module__.startswith("monai.") for each in values)

    def _stand_in(self, located: Any, arguments: Mapping[str, Any], id_: str) -> Any:
        """An object of the class whose constructor did not run: it has the attributes that name keys, and no others."""
        if arguments.get("keys", ()) is UNKNOWN:
            return UNKNOWN
        stand_in: Any = object.__new__(located)
        stand_in.__dict__["allow_missing_keys"] = False
        for name in READ_OF_MONAI:
            if name in arguments:
                value = arguments[name]
                is_tuple = name in TUPLES
                stand_in.__dict__[name] = value if not is_tuple else (value,) if isinstance(value, str) else tuple(value)
        self.made[id_] = stand_in
        return stand_in


def _refs(resolver: Any, text: str) -> list[str]:
    """Ids of the references in a text, in its order, each as often as it is there."""
    return [match.removeprefix("@") for match in resolver.id_matcher.findall(resolver.normalize_id(text))]


def _is_disabled(items: Mapping[str, Any], id_: str) -> bool:
    item = items.get(id_)
    return item is not None and type(item).__name__ == "ConfigComponent" and bool(item.is_disabled())
