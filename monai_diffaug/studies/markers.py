"""Generated tables in a hand-written text, each between two markers."""

from __future__ import annotations

__all__ = ["replace_between"]


def replace_between(text: str, name: str, content: str) -> str:
    """The text with ``content`` between ``<!-- NAME:start -->`` and ``<!-- NAME:end -->``.

    Raises:
        ValueError: the text lacks a marker.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, opening, rest = text.partition(start)
    _, closing, after = rest.partition(end)
    if not opening or not closing:
        raise ValueError(f"the text has no place for the tables: put the lines {start} and {end} where they belong")
    return f"{before}{start}\n\n{content}\n{end}{after}"
