"""The size to which the macros (``%id``, ``%file::id``) of a config expand: MONAI copies the text of a macro wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["MOST_ENTRIES", "macro_faults"]

MOST_ENTRIES = 50_000  # of a config with its macros and aliases written out
SEPARATOR = "::"


def macro_faults(config: Any) -> Iterator[tuple[str, str]]:
    """(id, message) if a macro holds itself or the expanded config is too large.

    >>> list(macro_faults({"a": "%b", "b": ["%a"]}))
    [('a', 'a macro holds itself: such a config has no end')]
    >>> list(macro_faults({"a": [1, 2], "b": "%a"}))
    []
    """
    sizes: dict[str, int] = {}
    open_ids: set[str] = set()

    def size_at(id_: str) -> int:
        if id_ in open_ids:
            raise RecursionError(id_)
        if id_ not in sizes:
            open_ids.add(id_)
            sizes[id_] = size_of(_at(config, id_), id_)
            open_ids.discard(id_)
        return sizes[id_]

    def size_of(value: Any, id_: str) -> int:
        if isinstance(value, dict):
            return 1 + sum(size_of(part, f"{id_}{SEPARATOR}{key}" if id_ else str(key)) for key, part in value.items())
        if isinstance(value, list):
            return 1 + sum(size_of(part, f"{id_}{SEPARATOR}{index}") for index, part in enumerate(value))
        if (
            isinstance(value, str)
            and value.startswith("%")
            and not value.startswith(("%::", "%#"))
            and "." not in value.partition(SEPARATOR)[0]
        ):
            target = value[1:].replace("#", SEPARATOR)
            return size_at(target)
        return 1

    for name in config if isinstance(config, dict) else ():
        try:
            size = size_at(str(name))
        except RecursionError:
            yield str(name), "a macro holds itself: such a config has no end"
            return
        if size > MOST_ENTRIES:
            yield str(name), f"its macros expand to {size} entries; the most is {MOST_ENTRIES}"
            return


def _at(config: Any, id_: str) -> Any:
    for key in id_.split(SEPARATOR):
        if isinstance(config, dict):
            config = config.get(key)
        elif isinstance(config, list) and key.isdigit() and int(key) < len(config):
            config = config[int(key)]
        else:
            return None
    return config
