"""Generated tables in a hand-written text: what stands between two markers is replaced."""

from __future__ import annotations

__all__ = ["replace_between"]


def replace_between(text: str, name: str, content: str) -> str:
    """The text with ``content`` between ``<!-- NAME:start -->`` and ``<!-- NAME:end -->``.

    Raises:
        ValueError: the text lacks a marker.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the text has no place for the tables: put the lines {start} and {end} where they shall stand")
    return f"{before}{start}\n\n{content}\n{end}{after}"
